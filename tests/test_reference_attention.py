"""The reference's attention reads a row's blocks where they lie, in one piece or a few, or gathers them: one result."""

from __future__ import annotations

import pytest
import torch
from models import tiny_model
from mps_coverage import Call, record
from plain_loop import float64_logits, logprobs_after, logprobs_of

from demiurgic import _C, GenerationConfig
from demiurgic.live_weights import live_weights

BLOCK, NUM_BLOCKS, LAYERS = 16, 12, 2
BLOCK_BYTES = LAYERS * 2 * BLOCK * 2 * 8 * 4  # layers, keys and values, positions, heads, head_dim, bytes
TEXT = torch.randint(
    90, (90,), generator=torch.Generator().manual_seed(0)
).tolist()  # six blocks, but for its last token

# The blocks that are free when a row comes, and in how many pieces attention reads it; None: in one, gathered first.
FREE: dict[str, tuple[set[int], int | None]] = {
    "one run": ({0, 1, 2, 3, 4, 5}, 1),
    "one run inside": ({4, 5, 6, 7, 8, 9}, 1),
    "three runs": ({0, 1, 4, 5, 8, 9}, 3),
    "four runs": ({0, 2, 3, 5, 6, 8}, 4),
    "scattered": ({0, 2, 4, 6, 8, 10}, None),
}
# Of a log-probability from float64's; float32 adds in some order. Seen: 8e-6.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")


def engine_with_free(blocks: set[int], max_step_tokens: int) -> _C.Engine:
    """An engine whose cache is full, where these blocks are the first that a row drives out."""
    engine = _C.Engine(live_weights(tiny_model()), NUM_BLOCKS * BLOCK_BYTES, max_step_tokens, True)
    fingerprint = engine.fingerprint()
    engine.keep_prefixes_of(fingerprint)
    nothing = torch.zeros(LAYERS, 2, BLOCK, 8)
    for block in range(NUM_BLOCKS):
        engine.write_prefix([block] * BLOCK, nothing, nothing, fingerprint)
    for block in set(range(NUM_BLOCKS)) - blocks:
        engine.read_prefix([block] * BLOCK, fingerprint)
    return engine


def num_products(calls: list[Call]) -> int:
    return sum(call.name == "bmm" for call in calls)


def num_gathers(calls: list[Call]) -> int:
    return sum(call.name == "index_select" and len(call.inputs[0].sizes) == 4 for call in calls)


@pytest.mark.parametrize("name", FREE)
def test_a_row_is_read_in_as_many_pieces_as_it_has_runs(name):
    blocks, pieces = FREE[name]
    engine = engine_with_free(blocks, max_step_tokens=128)
    found = []
    calls = record(lambda: found.extend(engine.score([TEXT], 8)))
    assert num_products(calls) == LAYERS * 2 * (pieces or 1)  # scores, and sums of values
    assert num_gathers(calls) == (0 if pieces else LAYERS * 2)
    truth = logprobs_of(float64_logits(tiny_model(), TEXT), TEXT)
    assert (torch.tensor(found[0][0]) - truth).abs().max() <= TOLERANCE


@pytest.mark.parametrize("max_step_tokens", [1, 7, 16])
@pytest.mark.parametrize("name", FREE)
def test_chunks_and_steps_of_one_token(name, max_step_tokens):
    logprobs, _ = engine_with_free(FREE[name][0], max_step_tokens).score([TEXT], 8)[0]
    truth = logprobs_of(float64_logits(tiny_model(), TEXT), TEXT)
    assert (torch.tensor(logprobs) - truth).abs().max() <= TOLERANCE


@pytest.mark.parametrize("length", [40, 48])  # the prompt's last block partly filled, and full
def test_copies_read_the_prompt_as_one_piece_and_their_own_as_another(length):
    engine = _C.Engine(live_weights(tiny_model()), None, 512, False)
    config = GenerationConfig(eos_token_id=[], max_new_tokens=30, num_return_sequences=3, temperature=1.0)
    prompt = TEXT[:length]
    request = _C.Request(prompts=[prompt], config=config, seeds=[1, 2, 3], max_running=8, want_logprobs=True)
    call = engine.add(request)
    for _ in range(20):
        call.advance()
    step = record(call.advance)
    assert num_products(step) == LAYERS * 2 * (1 + 2 + 2) and num_gathers(step) == 0
    while call.advance():
        pass
    for row in range(3):
        tokens = call.tokens(row)
        truth = logprobs_after(tiny_model(), prompt, tokens).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert (torch.tensor(call.logprobs(row)) - truth).abs().max() <= TOLERANCE
