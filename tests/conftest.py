import os
import signal
from collections.abc import Iterator

import pytest
import torch
from byte_tokenizers import byte_fallback, byte_level, saved

from demiurgic import _C
from demiurgic.tokenizer import Tokenizer

# The tests' models are so small that a team of threads costs far more than it brings, above all on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

# A shell's background job may ignore Ctrl-C, and so would the processes that tests start to press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PRESENT = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked with a device that is not here is skipped, or fails where DEMIURGIC_REQUIRE names the device."""
    by_reference = os.environ.get("DEMIURGIC_KERNELS") == "reference" and "isa" not in item.fixturenames
    if by_reference and item.get_closest_marker("native"):
        pytest.skip("the reference kernels do not promise it")
    for device, present in PRESENT.items():
        if item.get_closest_marker(device) and not present():
            if os.environ.get("DEMIURGIC_REQUIRE") == device:
                pytest.fail(f"DEMIURGIC_REQUIRE={device}, but torch finds no such device")
            pytest.skip(f"no {device} device")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same seed, and none leaves a trace in torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=_C.isa_names())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs once with the CPU kernels of each instruction set that this machine has."""
    name: str = request.param
    monkeypatch.setenv("DEMIURGIC_KERNELS", name)
    return name


@pytest.fixture(scope="module", params=[byte_level, byte_fallback], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer in which a character may be several tokens; the test runs once with each kind."""
    return saved(request.param(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The one of them that has a token for every byte."""
    return saved(byte_level(), tmp_path_factory.mktemp("tokenizer"))
