"""An allocator that refuses: a smaller cache is tried, and where none will do the error has the numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, which may have 400 MiB more than it has taken.
SCRIPT = """
import resource
import torch
from models import tiny_model
from demiurgic import generate

torch.set_num_threads(1)
model = tiny_model()
options = {"eos_token_id": list(range(97)), "seed": 0, "pad_token_id": 0}
expected = generate(model, [[1, 2], [3]] * 20, max_new_tokens=8, **options)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)

"""

WAITS = """
# A gigabyte would let all rows run at once.
found = generate(model, [[1, 2], [3]] * 20, max_new_tokens=100_000, cache_bytes=2**40, **options)
assert torch.equal(found, expected)
"""

REFUSED = """
try:
    generate(model, [[1]], max_new_tokens=4_000_000, cache_bytes=2**40, **options)
except RuntimeError as error:
    print(error)
assert torch.equal(generate(model, [[1, 2], [3]] * 20, max_new_tokens=8, **options), expected)
"""

NO_DRAFTS = """
from demiurgic.engine import Generation
from demiurgic import GenerationConfig

draft = tiny_model(attention_head_dim=1024)  # its cache would take gigabytes
config = GenerationConfig(eos_token_id=[5], seed=0, max_new_tokens=100_000)
results = []
for draft_model in (None, draft):
    drafts = {"draft_model": draft_model, "always_drafts": draft_model is not None}
    with Generation(model, [[1, 2]], config=config, cache_bytes=2**40, **drafts) as call:
        while call.advance():
            pass
        results.append(call.result().completions)
assert results[0] == results[1], results
assert len(results[0][0]) > 5
"""


@pytest.fixture
def run():
    if sys.platform != "linux":
        pytest.skip("only Linux bounds the memory of a process")

    def in_little_memory(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT + script], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return in_little_memory


def test_rows_wait_for_one_another_where_the_cache_is_smaller_than_wanted(run):
    run(WAITS)


def test_a_row_that_cannot_fit_is_refused_with_the_numbers_and_the_model_stays_usable(run):
    said = run(REFUSED)
    assert said.startswith("The longest row needs 1024 MB of key/value cache, and cpu did not give it, though ")


@pytest.mark.native
def test_a_draft_model_whose_cache_does_not_fit_brings_no_drafts(run):
    run(NO_DRAFTS)
