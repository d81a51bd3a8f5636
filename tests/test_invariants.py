"""A row's tokens depend on its prompt, its seed and the weights alone; and what the result looks like."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import fixed_logits_model, table_model, tiny_model
from plain_loop import greedy, prompts_without_ties

from demiurgic import GenerationConfig, generate
from demiurgic.engine import Generation

# float32 on the reference kernels: the sums of another batch differ in their last bits, so logprobs are compared within
# this, and tokens are equal because these draws and these largest logits are far from any border.
CLOSE = {"rtol": 0, "atol": 1e-4, "equal_nan": True}
BLOCK = 16  # tokens in a block of the cache

SAMPLED = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "no_repeat_ngram_size": 4,
}
GREEDY = {"do_sample": False}
PROMPTS = [[3], list(range(20, 37)), [5, 6, 5, 6, 7], list(range(2, 90)), [90, 1], [8] * 16]
SEEDS = [11, 12, 13, 14, 15, 16]
LONG = {"max_new_tokens": 40, "return_dict_in_generate": True}
ENDING = LONG | {"eos_token_id": [0, 1, 2, 3, 4, 5, 6, 7], "stop_token_ids": [90, 91, 92, 93]}


def rows_of(result):
    return list(zip(result.completions, result.finish_reasons, result.seeds, strict=True))


def check_same(one, other):
    assert rows_of(one) == rows_of(other)
    for name in ("logprobs", "processed_logprobs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **CLOSE)


def alone(model, prompts, seeds, **options):
    """Each row in a call of its own: completions, reasons and seeds."""
    results = [generate(model, [p], seed=[s], **options) for p, s in zip(prompts, seeds, strict=True)]
    return [row for result in results for row in rows_of(result)]


def run(model, prompts, keywords=None, **options):
    """The result, and the engine's counters once every row has ended."""
    with Generation(
        model, prompts, config=GenerationConfig(**options), want_logprobs=True, **(keywords or {})
    ) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def padded(prompts, pad, left):
    """Tensor [B, T] and mask of the same shape."""
    width = max(map(len, prompts))
    fill = [[pad] * (width - len(prompt)) for prompt in prompts]
    ones = [[1] * len(prompt) for prompt in prompts]
    zeros = [[0] * len(f) for f in fill]
    if left:
        return torch.tensor([f + p for f, p in zip(fill, prompts)]), torch.tensor([z + o for z, o in zip(zeros, ones)])
    return torch.tensor([p + f for f, p in zip(fill, prompts)]), torch.tensor([o + z for z, o in zip(zeros, ones)])


# ---- the same tokens, however they are computed ------------------------------------------------------------


@pytest.mark.parametrize("options", [SAMPLED | LONG, SAMPLED | ENDING, GREEDY | LONG, GREEDY | ENDING])
@pytest.mark.parametrize("dtype_of_ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("form", ["ragged", "left", "right", "left, masked", "right, masked", "pad is a real token"])
def test_a_row_alone_is_the_row_in_a_batch(form, dtype_of_ids, options):
    pad = 9 if form == "pad is a real token" else 96
    model = tiny_model(pad_token_id=pad)
    prompts = PROMPTS if "do_sample" not in options else prompts_without_ties(model, (1, 17, 5, 88, 2, 16), 40)
    expected = alone(model, prompts, SEEDS, attention_mask=None, **(options | {"pad_token_id": None}))
    if form == "ragged":
        result = generate(model, prompts, seed=SEEDS, **options)
    else:
        ids, mask = padded(prompts, pad, left=form.startswith("left"))
        given_mask = mask if form.endswith(("masked", "token")) else None
        result = generate(model, ids.to(dtype_of_ids), given_mask, seed=SEEDS, **options)
    assert rows_of(result) == expected
    assert result.prompt_lengths == [len(prompt) for prompt in prompts]
