import os
from collections.abc import Iterator

import pytest
import torch

from demiurgic import _C

# The tests' models are so small that a team of threads costs far more than it brings, above all on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

PRESENT = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked with a device that is not here is skipped, or fails where DEMIURGIC_REQUIRE names the device."""
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
