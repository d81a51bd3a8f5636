"""The sampler: each option's meaning as a table, the order of options, the draws, and every bit of its arithmetic."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import fixed_logits_model, table_model, tiny_model
from sampler_oracle import derive_seed, edited, next_token, philox4x32, processed_logits, report

from demiurgic import _C, GenerationConfig, GenerationError, generate
from demiurgic.engine import Generation

INF = math.inf
NEUTRAL = {"temperature": 1, "top_k": 0, "top_p": 1}


# ---- the order of sampling, plainly, in float64 ------------------------------------------------------------


def softmax(logits):
    masses = np.exp(logits - logits.max())
    return masses / masses.sum()


OFF = {
    "logit_bias": {},
    "bad_token_ids": [],
    "repetition_penalty": 1,
    "repetition_context_size": 2**62,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "penalize_prompt": True,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "eos_token_id": [],
    "stop_token_ids": [],
    "do_sample": True,
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "typical_p": 1,
    "min_p": 0,
}


def reference(logits, context, num_prompt, **options):
    """The probabilities [V] from which the token after `context` is drawn; the options as keywords of generate."""
    o = SimpleNamespace(**OFF | {name: value for name, value in options.items() if value is not None})
    context, generated = list(context), list(context[num_prompt:])
    logits = np.array(logits, dtype=np.float64)

    # 1. bias  2. repetition  3. frequency  4. presence
    for token, bias in o.logit_bias.items():
        logits[token] += bias
    for token in set(context[-o.repetition_context_size :]):
        logits[token] *= o.repetition_penalty if logits[token] < 0 else 1 / o.repetition_penalty
    for token, count in Counter(context if o.penalize_prompt else generated).items():
        logits[token] -= o.frequency_penalty * count + o.presence_penalty

    # 5. bans
    logits[o.bad_token_ids] = -INF
    if n := o.no_repeat_ngram_size:
        for end in range(n, len(context) + 1):
            if context[end - n : end - 1] == context[len(context) - n + 1 :]:
                logits[context[end - 1]] = -INF
    if len(context) < o.min_length or len(generated) < o.min_new_tokens:
        logits[o.eos_token_id + o.stop_token_ids] = -INF

    # 6. greedy sees this  7. temperature  8. top_k  9. typical_p or top_p  10. min_p
    if not o.do_sample or o.temperature == 0:
        return softmax(logits)
    logits = logits / o.temperature
    if 0 < o.top_k < len(logits):
        logits[logits < np.sort(logits)[-o.top_k]] = -INF
    p = softmax(logits)
    if o.typical_p < 1:
        surprise = -np.log(np.maximum(p, 1e-300))
        p = nucleus(p, np.abs(surprise - (p * surprise).sum()), o.typical_p)
    elif o.top_p < 1:
        p = nucleus(p, -p, o.top_p)
    p = np.where(p < o.min_p * p.max(), 0, p)
    return p / p.sum()


def nucleus(p, order, mass):
    """`p` without the tokens after the one that crosses `mass`, in the given order, ties by id."""
    kept = np.zeros_like(p)
    for token in np.argsort(order.round(9), kind="stable"):  # so that what should tie does tie
        kept[token] = p[token]
        if kept.sum() >= mass - 1e-12:
            break
    return kept / kept.sum()


def drawn(model, prompt=(0,), copies=300, **options):
    """{token: probability} of what `copies` rows draw as their next token."""
    settings = NEUTRAL | {"max_new_tokens": 1, "seed": 0, "num_return_sequences": copies, "max_running": 4096}
    result = generate(model, prompt, return_dict_in_generate=True, **(settings | options))
    assert set(result.errors) == {None}
    probabilities = {}
    for [token], [logprob] in zip(result.completions, result.processed_logprobs.tolist(), strict=True):
        assert probabilities.setdefault(token, math.exp(logprob)) == math.exp(logprob)
    return probabilities


def normalised(weights):
    """{token: probability} of the tokens that can be drawn."""
    return {token: weight / sum(weights) for token, weight in enumerate(weights) if weight}


def log(probabilities):
    return [math.log(p) if p else -INF for p in probabilities]


def same(probabilities, expected):
    return probabilities.keys() == expected.keys() and probabilities == pytest.approx(expected, abs=1e-6)


# ---- tables: each option, one line a case ------------------------------------------------------------------

# probabilities of the model, options, probabilities of the draws (as weights)
FILTERS = [
    ([0.5, 0.3, 0.2], {}, [0.5, 0.3, 0.2]),
    ([0.5, 0.5, 0.0], {}, [0.5, 0.5, 0.0]),
    ([0.5, 0.3, 0.2], {"temperature": 1.0}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"temperature": None}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"temperature": 0.5}, [0.25, 0.09, 0.04]),
    ([0.5, 0.3, 0.2], {"temperature": 2}, [0.5**0.5, 0.3**0.5, 0.2**0.5]),
    ([0.5, 0.3, 0.2], {"temperature": 1e-4}, [1, 0, 0]),
    ([0.502, 0.498, 0.0], {"temperature": 0.005}, [0.502**200, 0.498**200, 0]),
    ([0.5, 0.3, 0.2], {"temperature": 1e4}, [0.5**1e-4, 0.3**1e-4, 0.2**1e-4]),
    ([0.5, 0.3, 0.2], {"top_k": 0}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"top_k": None}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"top_k": 3}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"top_k": 4}, [0.5, 0.3, 0.2]),
    ([0.5, 0.3, 0.2], {"top_k": 2**63 - 1}, [0.5, 0.3, 0.2]),
    ([0.3, 0.2, 0.5], {"top_k": 2}, [0.3, 0, 0.5]),
    ([0.3, 0.2, 0.5], {"top_k": 1}, [0, 0, 1]),
    ([0.4, 0.2, 0.2, 0.2], {"top_k": 2}, [0.4, 0.2, 0.2, 0.2]),  # ties with the k-th stay
    ([0.1, 0.3, 0.3, 0.3], {"top_k": 1}, [0, 0.3, 0.3, 0.3]),
    ([0.4, 0.3, 0.2, 0.1], {"top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
    ([0.4, 0.3, 0.2, 0.1], {"top_p": None}, [0.4, 0.3, 0.2, 0.1]),
    ([0.4, 0.3, 0.2, 0.1], {"top_p": 0.41}, [0.4, 0.3, 0, 0]),  # the token that crosses stays
    ([0.4, 0.3, 0.2, 0.1], {"top_p": 0.39}, [1, 0, 0, 0]),
    ([0.1, 0.2, 0.3, 0.4], {"top_p": 0.71}, [0, 0.2, 0.3, 0.4]),
    ([0.1, 0.2, 0.3, 0.4], {"top_p": 0}, [0, 0, 0, 1]),
    ([0.2, 0.4, 0.4], {"top_p": 0}, [0, 1, 0]),  # ties by the lowest id
    ([0.25, 0.25, 0.25, 0.25], {"top_p": 0.5}, [1, 1, 0, 0]),  # reached exactly
    ([0.25, 0.25, 0.25, 0.25], {"top_p": 0.51}, [1, 1, 1, 0]),
    ([0.2, 0.4, 0.2, 0.2], {"top_p": 0.7}, [0.2, 0.4, 0.2, 0]),
    # Surprises of these: 0.51, 1.61, 2.30, 2.30; their mean, the entropy: 1.09; so the order is 1, 0, 2, 3.
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 1}, [0.6, 0.2, 0.1, 0.1]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": None}, [0.6, 0.2, 0.1, 0.1]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 1e-12}, [0, 1, 0, 0]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.1}, [0, 1, 0, 0]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.21}, [0.6, 0.2, 0, 0]),  # the token that crosses stays
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.81}, [0.6, 0.2, 0.1, 0]),  # ties by the lowest id
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.95}, [0.6, 0.2, 0.1, 0.1]),
    ([0.6, 0.2, 0.2, 0.0], {"typical_p": 0.95}, [0.6, 0.2, 0.2, 0.0]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.1, "top_p": 0.1}, [0, 1, 0, 0]),  # typical_p stands in for top_p
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.95, "top_p": 0.1}, [0.6, 0.2, 0.1, 0.1]),
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 1.0, "top_p": 0.1}, [1, 0, 0, 0]),
    ([0.5, 0.3, 0.15, 0.05], {"min_p": 0}, [0.5, 0.3, 0.15, 0.05]),
    ([0.5, 0.3, 0.15, 0.05], {"min_p": None}, [0.5, 0.3, 0.15, 0.05]),
    ([0.5, 0.3, 0.15, 0.05], {"min_p": 0.29}, [0.5, 0.3, 0.15, 0]),
    ([0.5, 0.3, 0.15, 0.05], {"min_p": 0.31}, [0.5, 0.3, 0, 0]),
    ([0.2, 0.4, 0.4], {"min_p": 1}, [0, 0.4, 0.4]),
    # order: temperature before the filters
    ([0.5, 0.3, 0.2], {"temperature": 0.5, "top_p": 0.6}, [1, 0, 0]),
    ([0.5, 0.3, 0.2], {"temperature": 2, "min_p": 0.5}, [0.5**0.5, 0.3**0.5, 0.2**0.5]),
    ([0.6, 0.2, 0.1, 0.1], {"temperature": 0.25, "typical_p": 0.1}, [1, 0, 0, 0]),
    # order: top_k, then the mass of what it left
    ([0.4, 0.3, 0.2, 0.1], {"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0]),
    ([0.6, 0.2, 0.1, 0.1], {"top_k": 2, "typical_p": 0.1}, [1, 0, 0, 0]),
    ([0.3, 0.3, 0.2, 0.2], {"top_k": 1, "top_p": 0.4}, [1, 0, 0, 0]),
    # order: min_p last, of the largest that is left
    ([0.6, 0.2, 0.1, 0.1], {"typical_p": 0.1, "min_p": 0.9}, [0, 1, 0, 0]),
    ([0.5, 0.3, 0.15, 0.05], {"top_p": 0.9, "min_p": 0.31}, [0.5, 0.3, 0, 0]),
    ([0.5, 0.3, 0.15, 0.05], {"top_k": 3, "top_p": 0.8, "min_p": 0.1}, [0.5, 0.3, 0, 0]),
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("probabilities", "options", "expected"), FILTERS)
def test_filters(probabilities, options, expected):
    expected = normalised(expected)
    assert same(drawn(fixed_logits_model(log(probabilities)), **options), expected)
    assert same(normalised(reference(log(probabilities), [0], 1, **options)), expected)


# logits of the model, prompt, options, logits of the draws
EDITS = [
    ([2, -2, 1, 0], [3], {"logit_bias": {0: -1.5, 2: 0.25}}, [0.5, -2, 1.25, 0]),
    ([2, -2, 1, 0], [3], {"logit_bias": {0: -1e30}}, [-INF, -2, 1, 0]),
    ([2, -2, 1, 0], [3], {"logit_bias": None}, [2, -2, 1, 0]),
    ([2, -2, 1, 0], [3], {"bad_token_ids": [0, 2]}, [-INF, -2, -INF, 0]),
    ([2, -2, 1, 0], [3], {"bad_token_ids": 0}, [-INF, -2, 1, 0]),
    ([2, -2, 1, 0], [3], {"bad_token_ids": []}, [2, -2, 1, 0]),
    ([2, -2, 1, 0], [3], {"bad_token_ids": [0], "logit_bias": {0: 100}}, [-INF, -2, 1, 0]),
    ([2, -1, 1, 0], [0, 1], {"repetition_penalty": 2}, [1, -2, 1, 0]),
    ([2, -1, 1, 0], [0, 1], {"repetition_penalty": 0.5}, [4, -0.5, 1, 0]),
    ([2, -1, 1, 0], [0, 1], {"repetition_penalty": None}, [2, -1, 1, 0]),
    ([2, -1, 1, 0], [0, 0, 0, 3], {"repetition_penalty": 2}, [1, -1, 1, 0]),  # once per distinct token
    ([2, -1, 1, 0], [0, 1], {"repetition_penalty": 2, "penalize_prompt": False}, [1, -2, 1, 0]),
    ([2, 2, 1, 1], [0, 1, 2], {"repetition_penalty": 2, "repetition_context_size": 1}, [2, 2, 0.5, 1]),
    ([2, 2, 1, 1], [0, 1, 2], {"repetition_penalty": 2, "repetition_context_size": 2}, [2, 1, 0.5, 1]),
    ([2, 2, 1, 1], [0, 1, 0], {"repetition_penalty": 2, "repetition_context_size": 2}, [1, 1, 1, 1]),
    ([2, 2, 1, 1], [0, 1, 2], {"repetition_penalty": 2, "repetition_context_size": 99}, [1, 1, 0.5, 1]),
    ([2, -1, 1, 0], [0, 1, 1], {"frequency_penalty": 0.5}, [1.5, -2, 1, 0]),  # exactly f * count, below 0 too
    ([2, -1, 1, 0], [0, 1, 1], {"frequency_penalty": -0.5}, [2.5, 0, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"frequency_penalty": 0.5, "penalize_prompt": False}, [2, -1, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"frequency_penalty": 0.5, "repetition_context_size": 1}, [1.5, -2, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"presence_penalty": 0.5}, [1.5, -1.5, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"presence_penalty": -0.5}, [2.5, -0.5, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"presence_penalty": 0.5, "penalize_prompt": False}, [2, -1, 1, 0]),
    ([2, -1, 1, 0], [0, 1, 1], {"presence_penalty": 0.5, "frequency_penalty": 0.25}, [1.25, -2, 1, 0]),
    ([2, 1, 1, 0], [0, 1, 0], {"no_repeat_ngram_size": 1}, [-INF, -INF, 1, 0]),
    ([2, 1, 1, 0], [0, 1, 0], {"no_repeat_ngram_size": 2}, [2, -INF, 1, 0]),
    ([2, 1, 1, 0], [0, 0], {"no_repeat_ngram_size": 2}, [-INF, 1, 1, 0]),
    ([2, 1, 1, 0], [0, 1, 0, 2, 0], {"no_repeat_ngram_size": 2}, [2, -INF, -INF, 0]),
    ([2, 1, 1, 0], [0, 1, 2, 0, 1], {"no_repeat_ngram_size": 3}, [2, 1, -INF, 0]),
    ([2, 1, 1, 0], [0, 1, 2, 1, 1], {"no_repeat_ngram_size": 3}, [2, 1, 1, 0]),
    ([2, 1, 1, 0], [0, 1, 0], {"no_repeat_ngram_size": 4}, [2, 1, 1, 0]),
    ([2, 1, 1, 0], [0, 1, 0], {"no_repeat_ngram_size": 0}, [2, 1, 1, 0]),
    ([2, 1, 1, 0], [0, 1], {"min_length": 3, "eos_token_id": [0, 3]}, [-INF, 1, 1, -INF]),
    ([2, 1, 1, 0], [0, 1], {"min_length": 3, "stop_token_ids": [1]}, [2, -INF, 1, 0]),
    ([2, 1, 1, 0], [0, 1], {"min_length": 2, "eos_token_id": [0]}, [2, 1, 1, 0]),
    ([2, 1, 1, 0], [0, 1], {"min_new_tokens": 1, "eos_token_id": [0], "stop_token_ids": [1]}, [-INF, -INF, 1, 0]),
    ([2, 1, 1, 0], [0, 1], {"min_new_tokens": 0, "eos_token_id": [0]}, [2, 1, 1, 0]),
    # order: bias, repetition, frequency and presence, bans
    ([1, 0, 0, 0], [0], {"logit_bias": {0: -2}, "repetition_penalty": 2}, [-2, 0, 0, 0]),
    ([2, 0, 0, 0], [0], {"repetition_penalty": 2, "frequency_penalty": 0.5}, [0.5, 0, 0, 0]),
    ([2, 0, 0, 0], [0], {"repetition_penalty": 2, "presence_penalty": 1.5}, [-0.5, 0, 0, 0]),
    ([2, 0, 0, 0], [0, 0], {"repetition_penalty": 4, "frequency_penalty": 1, "presence_penalty": 1}, [-2.5, 0, 0, 0]),
    ([2, 1, 0, 0], [0, 0], {"frequency_penalty": 1, "top_k": 1}, [-INF, 1, -INF, -INF]),
    ([2, 1, 0, 0], [1], {"bad_token_ids": [0], "top_p": 0.01}, [-INF, 1, -INF, -INF]),
    ([2, 0, 0, 0], [0], {"repetition_penalty": 2, "temperature": 2}, [0.5, 0, 0, 0]),
]  # fmt: skip


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("logits", "prompt", "options", "expected"), EDITS)
def test_bias_bans_and_penalties(logits, prompt, options, expected):
    expected = normalised(softmax(np.array(expected)).tolist())
    assert same(drawn(fixed_logits_model(logits), prompt, **options), expected)
    assert same(normalised(reference(logits, prompt, len(prompt), **options)), expected)


# logits of the model, options, the token, its probability by what the options of steps 1 to 5 left
GREEDY = [
    (log([0.2, 0.5, 0.3]), {"do_sample": False}, 1, 0.5),
    (log([0.2, 0.5, 0.3]), {"temperature": 0}, 1, 0.5),
    (log([0.2, 0.5, 0.3]), {"temperature": 0.0, "do_sample": True}, 1, 0.5),
    (log([0.2, 0.5, 0.3]), {"do_sample": False, "temperature": 0.1, "top_k": 1, "min_p": 1}, 1, 0.5),
    (log([0.2, 0.4, 0.4]), {"do_sample": False}, 1, 0.4),  # ties by the lowest id
    ([1.0] * 50, {"do_sample": False}, 0, 0.02),
    (log([0.2, 0.5, 0.3]), {"do_sample": False, "bad_token_ids": [1]}, 2, 0.6),
    (log([0.2, 0.5, 0.3]), {"do_sample": False, "logit_bias": {0: 5}}, 0, 0.2 / (0.2 + 0.8 * math.exp(-5))),
    ([2, 1.5, 0], {"do_sample": False, "repetition_penalty": 2}, 1, 1 / (1 + math.exp(-0.5) + math.exp(-1.5))),
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("logits", "options", "token", "probability"), GREEDY)
def test_greedy(logits, options, token, probability):
    assert drawn(fixed_logits_model(logits), copies=2, **options) == pytest.approx({token: probability}, abs=1e-6)


# prompt as given, keywords, tokens that the penalties must see
PADDING = [
    ([[3, 3, 1, 2]], {"pad_token_id": 3}, [1, 2]),
    ([[1, 2, 3, 3]], {"pad_token_id": 3}, [1, 2]),
    ([[3, 1, 3, 2]], {"pad_token_id": 3}, [1, 3, 2]),  # the pad's id between tokens is a token
    ([[3, 1, 2]], {"pad_token_id": 3, "eos_token_id": 3}, [3, 1, 2]),  # padding unknown: nothing is padding
    ([[3, 1, 2, 3]], {"pad_token_id": 3, "attention_mask": [[0, 1, 1, 1]]}, [1, 2, 3]),  # a real token at the edge
    ([[0, 0, 1, 2]], {"attention_mask": [[0, 1, 1, 1]]}, [0, 1, 2]),
    ([[0, 1, 2, 2]], {"attention_mask": [[1, 1, 1, 0]]}, [0, 1, 2]),
]


@pytest.mark.parametrize(("prompt", "keywords", "counted"), PADDING)
def test_padding_is_never_counted(prompt, keywords, counted):
    penalties = {"repetition_penalty": 1.5, "frequency_penalty": 0.2, "presence_penalty": 0.1}
    model = fixed_logits_model([1, 0.5, -0.5, 0.25])
    expected = normalised(reference([1, 0.5, -0.5, 0.25], counted, len(counted), **penalties))
    assert same(drawn(model, torch.tensor(prompt), **penalties, **keywords), expected)


def test_penalties_follow_the_generated_tokens():
    logits = [0.5, -0.5, 1, 0, 0.25]
    model = fixed_logits_model(logits)
    for options in (
        {"frequency_penalty": 0.7},
        {"presence_penalty": 0.7, "penalize_prompt": False},
        {"frequency_penalty": 0.7, "presence_penalty": -0.3, "penalize_prompt": False},
        {"repetition_penalty": 1.7, "repetition_context_size": 2},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 3, "eos_token_id": [4]},
        {"min_length": 4, "stop_token_ids": [4]},
    ):
        settings = NEUTRAL | {"max_new_tokens": 6, "num_return_sequences": 20, "seed": 3} | options
        result = generate(model, [2, 0, 2], return_dict_in_generate=True, **settings)
        for completion, logprobs in zip(result.completions, result.processed_logprobs, strict=True):
            for i, token in enumerate(completion):
                p = reference(logits, [2, 0, 2, *completion[:i]], 3, **options)[token]
                assert math.exp(logprobs[i]) == pytest.approx(p, abs=1e-6), (options, completion)


# ---- the draws ---------------------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    expected = np.array(probabilities) * sum(counts)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


SKEWED = [0.0, 0.3, 0.0, 0.25, 0.2, 0.125, 0.0625, 0.03125, 0.03125, 0.0]
CHI_SQUARE_6 = 22.46  # 99.9 % of chi-squares with 6 degrees of freedom lie below


@pytest.mark.parametrize(("copies", "new", "seed"), [(20000, 1, 0), (20000, 1, 2**64 - 1), (20, 1000, 5)])
def test_frequencies(copies, new, seed):
    settings = NEUTRAL | {"max_new_tokens": new, "num_return_sequences": copies, "seed": seed, "max_running": 4096}
    tokens = generate(fixed_logits_model(log(SKEWED)), [0], **settings)[:, 1:]
    counts = torch.bincount(tokens.flatten(), minlength=len(SKEWED)).tolist()
    assert [token for token, count in enumerate(counts) if count] == [token for token, p in enumerate(SKEWED) if p]
    drawn_counts = [count for count in counts if count]
    assert chi_square(drawn_counts, [p for p in SKEWED if p]) < CHI_SQUARE_6


def test_tokens_that_follow_each_other_are_independent():
    model, p = fixed_logits_model(log([0.5, 0.3, 0.2])), [0.5, 0.3, 0.2]
    tokens = generate(model, [0], **NEUTRAL, max_new_tokens=1000, num_return_sequences=20, seed=1)[:, 1:]
    neighbours = {"in a row": tokens[:, :-1] * 3 + tokens[:, 1:], "of two rows": tokens[:-1] * 3 + tokens[1:]}
    for name, pairs in neighbours.items():
        counts = torch.bincount(pairs.flatten(), minlength=9).tolist()
        assert chi_square(counts, np.outer(p, p).flatten()) < 26.13, name  # 99.9 % of 8 degrees of freedom


def test_tokens_of_no_mass_are_never_drawn():
    model = fixed_logits_model([0, -28, -200, -INF, 0])  # e^-28 is less than 2^-40
    settings = NEUTRAL | {"max_new_tokens": 400, "num_return_sequences": 50, "seed": 9}
    assert set(generate(model, [0], **settings)[:, 1:].flatten().tolist()) == {0, 4}


# ---- every bit ---------------------------------------------------------------------------------------------


def random_case(r):
    """logits, prompt, options"""
    vocab = r.choice([2, 3, 5, 17, 60, 300])
    scale = r.choice([1e-7, 0.1, 1, 4, 20])  # the smallest: logits that differ and masses that tie
    logits = [r.gauss(0, scale) for _ in range(vocab)]
    if r.random() < 0.3:
        logits = [float(round(x)) for x in logits]  # ties
    if r.random() < 0.3:
        logits = [x if r.random() < 0.8 else -INF for x in logits[1:]] + [0.0]
    choices = {
        "logit_bias": lambda: {r.randrange(vocab): r.gauss(0, 5) for _ in range(2)},
        "bad_token_ids": lambda: [r.randrange(vocab)],
        "repetition_penalty": lambda: r.uniform(0.5, 2),
        "repetition_context_size": lambda: r.randint(1, 6),
        "frequency_penalty": lambda: r.gauss(0, 1),
        "presence_penalty": lambda: r.gauss(0, 1),
        "penalize_prompt": lambda: r.random() < 0.5,
        "no_repeat_ngram_size": lambda: r.randint(2, 4),
        "min_new_tokens": lambda: r.randint(0, 5),
        "min_length": lambda: r.randint(0, 12),
        "stop_token_ids": lambda: [r.randrange(vocab)],
        "do_sample": lambda: r.random() < 0.8,
        "temperature": lambda: r.choice([0, 1e-4, 0.3, 1, 2.5, 1e4]),
        "top_k": lambda: r.choice([0, 1, 2, 5, 40, 1000]),
        "top_p": lambda: r.choice([0, r.random(), r.random(), 0.999, 1]),
        "typical_p": lambda: r.choice([None, 1e-6 + r.random()]),
        "min_p": lambda: r.choice([0, 0.01, r.random(), 1]),
    }
    options = {name: choose() for name, choose in choices.items() if r.random() < 0.5}
    prompt = [r.randrange(vocab) for _ in range(r.randint(1, 9))]
    return logits, prompt, options | {"seed": r.getrandbits(64), "eos_token_id": [r.randrange(vocab)]}


def report_at(result, prefix, row, i):
    """(ids, log-probabilities, entropy) of a position; the ids without the -1 after them, whose numbers must be nan."""
    ids = getattr(result, f"{prefix}top_logprob_ids")[row, i].tolist()
    numbers = getattr(result, f"{prefix}top_logprobs")[row, i].tolist()
    listed = ids.index(-1) if -1 in ids else len(ids)
    assert set(ids[listed:]) <= {-1} and all(map(math.isnan, numbers[listed:]))
    return ids[:listed], numbers[:listed], getattr(result, f"{prefix}entropies")[row, i].item()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("part", range(8))
def test_every_bit_is_as_specified(part):
    for number in range(50 * part, 50 * (part + 1)):
        logits, prompt, options = random_case(random.Random(number))
        told = {"top_logprobs": 1 + number % 7, "top_logprobs_mode": "both", "entropy": True}
        config = GenerationConfig(max_new_tokens=5, num_return_sequences=2, **options, **told)
        result = generate(fixed_logits_model(logits), prompt, generation_config=config, return_dict_in_generate=True)
        for row, (completion, reason) in enumerate(zip(result.completions, result.finish_reasons, strict=True)):
            tokens = list(prompt)
            for i, token in enumerate(completion):
                expected = next_token(logits, tokens, len(prompt), config, derive_seed(options["seed"], row))
                given = (token, result.logprobs[row, i].item(), result.processed_logprobs[row, i].item())
                assert given == expected, (number, row, i)
                raw = np.asarray(logits, dtype=np.float32)
                processed = processed_logits(raw, tokens, len(prompt), config)
                for prefix, distribution in (("", raw), ("processed_", processed)):
                    assert report_at(result, prefix, row, i) == report(distribution, config.top_logprobs), (number, row)
                tokens.append(token)
            if reason == "error":
                left = edited(np.array(logits, dtype=np.float32), tokens, len(prompt), config)
                assert left.max() == -INF, number


def test_random_cases_agree_with_the_plain_reference():
    for number in range(60):
        logits, prompt, options = random_case(random.Random(number))
        options["min_new_tokens"] = 0  # one token is drawn
        allowed = edited(np.array(logits, dtype=np.float32), prompt, len(prompt), GenerationConfig(**options))
        if allowed.max() == -INF or max(abs(x) for x in logits if x > -INF) < 1e-4:  # too fine for float32
            continue
        expected = reference(logits, prompt, len(prompt), **options)
        for token, p in drawn(fixed_logits_model(logits), prompt, copies=50, **options).items():
            assert p == pytest.approx(expected[token], rel=1e-4, abs=1e-6), number


# Known answers of Random123 (D. E. Shaw Research), tests/kat_vectors: counter, key, output
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("words", PHILOX)
def test_philox_known_answers(words):
    counter, key, output = ([int(word, 16) for word in text.split()] for text in words)
    assert philox4x32(counter, key) == output


def test_derived_seeds_are_philox():
    for seed in (0, 1, 42, 2**32, 2**64 - 1, 0x243F6A8885A308D3):
        assert _C.derive_seed(seed, 0) == seed
        for i in (1, 2, 255, 2**32 + 1, 2**63):
            assert _C.derive_seed(seed, i) == derive_seed(seed, i)
    assert len({_C.derive_seed(7, i) for i in range(10000)}) == 10000


# ---- against Hugging Face, where the meanings agree --------------------------------------------------------

HUGGING_FACE = [
    ("TopKLogitsWarper", {"top_k": 3}, {"top_k": 3}),
    ("TopKLogitsWarper", {"top_k": 100}, {"top_k": 100}),
    ("TopPLogitsWarper", {"top_p": 0.6}, {"top_p": 0.6}),
    ("TopPLogitsWarper", {"top_p": 0.01}, {"top_p": 0.01}),
    ("MinPLogitsWarper", {"min_p": 0.2}, {"min_p": 0.2}),
    ("TypicalLogitsWarper", {"mass": 0.05}, {"typical_p": 0.05}),
    ("TypicalLogitsWarper", {"mass": 0.5}, {"typical_p": 0.5}),
    ("TypicalLogitsWarper", {"mass": 0.9}, {"typical_p": 0.9}),
    ("TemperatureLogitsWarper", {"temperature": 0.7}, {"temperature": 0.7}),
    ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.3}, {"repetition_penalty": 1.3}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 1}, {"no_repeat_ngram_size": 1}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 3}, {"no_repeat_ngram_size": 3}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 9}, {"no_repeat_ngram_size": 9}),
    ("MinLengthLogitsProcessor", {"min_length": 6, "eos_token_id": [4]}, {"min_length": 6, "eos_token_id": 4}),
    ("MinLengthLogitsProcessor", {"min_length": 5, "eos_token_id": [4]}, {"min_length": 5, "eos_token_id": 4}),
    (
        "MinNewTokensLengthLogitsProcessor",
        {"prompt_length_to_skip": 5, "min_new_tokens": 1, "eos_token_id": [4, 5]},
        {"min_new_tokens": 1, "eos_token_id": [4, 5]},
    ),
]


@pytest.mark.parametrize(("name", "arguments", "options"), HUGGING_FACE)
def test_agrees_with_hugging_face(name, arguments, options):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(**arguments)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(12, generator=generator) * 2
        prompt = [1, 2, 3, 1, 2]
        expected = processor(torch.tensor([prompt]), logits.clone()[None])[0].softmax(-1)
        probabilities = drawn(fixed_logits_model(logits), prompt, **options)
        likely = {token for token, p in enumerate(expected) if p > 0.04}  # 1 - (1 - 0.04)^300 > 0.99999
        assert likely <= probabilities.keys()
        for token, p in probabilities.items():
            assert p == pytest.approx(float(expected[token]), abs=1e-6)


# ---- seeds and the global generator ------------------------------------------------------------------------


def completions(model, prompts, **options):
    settings = {"max_new_tokens": 8, "temperature": 1.0}
    return generate(model, prompts, return_dict_in_generate=True, **(settings | options)).completions


PROMPTS = [[5, 6, 7], [8, 9], [10]]


def test_seed_in_its_three_forms():
    model, options = tiny_model(), {"max_new_tokens": 8, "num_return_sequences": 2, "return_dict_in_generate": True}
    one = generate(model, PROMPTS, seed=11, **options)
    a_prompt = generate(model, PROMPTS, seed=[11, 12, 13], **options)
    a_row = generate(model, PROMPTS, seed=[1, 2, 3, 4, 5, 6], **options)
    assert one.seeds == [_C.derive_seed(11, i) for i in range(6)]
    assert a_prompt.seeds == [_C.derive_seed(seed, copy) for seed in (11, 12, 13) for copy in (0, 1)]
    assert a_row.seeds == [1, 2, 3, 4, 5, 6]
    for result in (one, a_prompt, a_row):
        again = generate(model, PROMPTS, seed=result.seeds, **options)
        assert again.completions == result.completions
        assert torch.equal(again.processed_logprobs, result.processed_logprobs)


@pytest.mark.parametrize("seeds", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_a_list_of_seeds_of_another_length_is_refused(seeds):
    with pytest.raises(ValueError, match=rf"seed is a list of {len(seeds)}.*\(3\).*\(6\)"):
        generate(tiny_model(), PROMPTS, seed=seeds, num_return_sequences=2)


def test_a_row_alone_with_its_seed_draws_the_same():
    model = tiny_model()
    result = generate(model, PROMPTS, seed=3, num_return_sequences=3, max_new_tokens=8, return_dict_in_generate=True)
    for row, seed in enumerate(result.seeds):
        for form in (seed, [seed]):
            alone = completions(model, [PROMPTS[row // 3]], seed=form, temperature=0.8)
            assert alone == [result.completions[row]]


def test_copies_are_distinct_streams():
    rows = completions(tiny_model(), [[5, 6, 7]], seed=0, num_return_sequences=4)
    assert len({tuple(row) for row in rows}) == 4


def test_rows_with_different_seeds_differ_and_the_last_does_not_win():
    model = tiny_model()
    first, second = completions(model, [[5, 6], [5, 6]], seed=[1, 2])
    assert first != second
    assert completions(model, [[5, 6], [5, 6]], seed=[2, 1]) == [second, first]


def test_manual_seed_repeats_runs_without_a_seed():
    model = tiny_model()
    first, second = completions(model, [[5, 6]]), completions(model, [[5, 6]])
    torch.manual_seed(0)
    assert completions(model, [[5, 6]]) == first
    assert completions(model, [[5, 6]]) == second != first


def test_the_reported_seed_repeats_a_run_without_a_seed():
    model = tiny_model()
    result = generate(model, PROMPTS, max_new_tokens=8, num_return_sequences=2, return_dict_in_generate=True)
    assert result.seeds == [_C.derive_seed(result.seeds[0], i) for i in range(6)]
    assert completions(model, PROMPTS, seed=result.seeds[0], num_return_sequences=2, temperature=0.8) == (
        result.completions
    )


# keywords, how many 64-bit draws they take from torch's generator
GENERATOR = [
    ({}, 1),
    ({"num_return_sequences": 5}, 1),
    ({"max_new_tokens": 40}, 1),
    ({"seed": 0}, 0),
    ({"seed": [3]}, 0),
    ({"do_sample": False}, 0),
    ({"temperature": 0}, 0),
    ({"seed": None, "do_sample": True}, 1),
]
REFUSED = [
    ({"topp": 1}, TypeError),
    ({"top_p": 2}, ValueError),
    ({"max_new_tokens": "a"}, TypeError),
    ({"bad_token_ids": [97]}, IndexError),
    ({"input_ids": [[97]]}, IndexError),
    ({"input_ids": [[]]}, ValueError),
    ({"attention_mask": [[1, 0, 1]], "input_ids": [[1, 2, 3]]}, ValueError),
    ({"seed": [1, 2]}, ValueError),
    ({"cache_bytes": 1}, RuntimeError),
    ({"max_running": 0}, ValueError),
]


@pytest.mark.parametrize(("keywords", "draws"), GENERATOR)
def test_the_global_generator_is_left_alone(keywords, draws):
    model = tiny_model()
    expected = torch.Generator()
    expected.set_state(torch.get_rng_state())
    for _ in range(draws):
        torch.empty((), dtype=torch.int64).random_(generator=expected)
    generate(model, [1, 2], **({"max_new_tokens": 3} | keywords))
    assert torch.equal(torch.get_rng_state(), expected.get_state())


@pytest.mark.parametrize(("keywords", "error"), REFUSED)
def test_a_refused_call_draws_nothing(keywords, error):
    model, before = tiny_model(), torch.get_rng_state()
    with pytest.raises(error):
        generate(model, **({"input_ids": [1, 2]} | keywords))
    assert torch.equal(torch.get_rng_state(), before)


# ---- one test per option that it is alive ------------------------------------------------------------------

ENDS = {"eos_token_id": list(range(60)), "max_new_tokens": 12}
REPEATS = {"do_sample": False, "logit_bias": {3: 50.0}}
# Each token is a letter in the first column, or a line that begins a definition.
LETTERS = _C.TokenBytes([chr(33 + token) if token % 3 else "\ndef f(): 1\n" for token in range(97)], [], "raw")
# option: what stands beside it, the changed value
ALIVE = {
    "max_new_tokens": ({}, 3),
    "max_length": ({}, 9),
    "min_length": (ENDS, 18),
    "min_new_tokens": (ENDS, 12),
    "temperature": ({}, 1.5),
    "top_k": ({}, 2),
    "top_p": ({}, 0.3),
    "typical_p": ({}, 0.3),
    "min_p": ({}, 0.5),
    "do_sample": ({}, False),
    "repetition_penalty": ({}, 1.5),
    "frequency_penalty": ({}, 1.0),
    "presence_penalty": ({}, 1.0),
    "repetition_context_size": ({"repetition_penalty": 1.5}, 2),
    "penalize_prompt": ({"frequency_penalty": 1.0}, False),
    "no_repeat_ngram_size": ({}, 1),
    "logit_bias": ({}, {3: 5.0}),
    "bad_token_ids": ({}, list(range(1, 90))),
    "num_return_sequences": ({}, 5),
    "pad_token_id": (ENDS, 96),
    "eos_token_id": ({}, list(range(60))),
    "stop_token_ids": ({}, list(range(60))),
    "seed": ({}, 1),
    "use_cache": ({}, False),
    "speculate": (REPEATS, "ngram"),
    "max_draft_tokens": (REPEATS | {"speculate": "ngram"}, 1),
    "stop": ({}, [chr(33 + token) for token in range(60)]),
    "include_stop": ({"stop": [chr(33 + token) for token in range(60)]}, True),
    "stop_at": ({}, "function"),
    "stop_on_repetition": (REPEATS | {"repetition_min_tokens": 4}, 2),
    "repetition_min_tokens": (REPEATS | {"stop_on_repetition": 2}, 4),
    "trim_repetition": (REPEATS | {"stop_on_repetition": 2, "repetition_min_tokens": 4}, True),
    "top_logprobs": ({}, 3),
    "top_logprobs_mode": ({"top_logprobs": 3, "temperature": 0.5}, "processed"),
    "prompt_logprobs": ({}, True),
    "entropy": ({}, True),
}


def observed(**options):
    model = tiny_model()
    config = GenerationConfig(**(NEUTRAL | {"max_new_tokens": 12, "seed": 0, "num_return_sequences": 4} | options))
    keywords = {"config": config, "want_logprobs": True, "tokenizer": LETTERS, "always_drafts": True}
    with Generation(model, [5, 6, 5, 7, 6], **keywords) as generation:
        while generation.advance():
            pass
        counters = generation._engine.counters()
    result = generation.result()
    numbers = [result.sequences, result.logprobs.nan_to_num(), result.processed_logprobs.nan_to_num()]
    told = [result.top_logprobs, result.top_logprob_ids, result.entropies, result.prompt_logprobs]
    numbers += [torch.zeros(0) if n is None else n.nan_to_num() for n in told]
    return [n.tolist() for n in numbers], counters["num_computed_tokens"], counters["num_steps"]


OF_DRAFTS = ("speculate", "max_draft_tokens")


@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=pytest.mark.native) if name in OF_DRAFTS else name for name in ALIVE]
)
def test_every_option_is_alive(option):
    beside, value = ALIVE[option]
    base, changed = observed(**beside), observed(**beside, **{option: value})
    if option == "use_cache":
        assert base[0][0] == changed[0][0]  # the same tokens, but every prefix computed again
        assert changed[1] == 4 * sum(range(5, 17)) > 2 * base[1]
    elif option in OF_DRAFTS:
        assert base[0] == changed[0] and base[2] != changed[2]  # the same result in another number of steps
    else:
        assert base[0] != changed[0]


def test_every_option_has_a_test_that_it_is_alive():
    assert sorted(ALIVE) == sorted(option["name"] for option in _C.options())


# ---- rows that cannot go on --------------------------------------------------------------------------------


def test_a_row_with_nan_ends_with_the_parameter_named_and_the_others_go_on():
    options = {"seed": [1, 2, 3], "max_new_tokens": 6, "eos_token_id": [], "return_dict_in_generate": True}
    for bad in (math.nan, INF):
        model = tiny_model()
        prompts = [[5, 6], [7, 50, 8], [9]]
        alone = [generate(model, [prompts[row]], **(options | {"seed": [row + 1]})) for row in (0, 2)]
        assert all(50 not in result.completions[0] for result in alone)
        with torch.no_grad():
            model.model.embed_tokens.weight[50, 3] = bad
        result = generate(model, prompts, **options)
        assert result.finish_reasons == ["length", "error", "length"]
        assert "model.embed_tokens.weight" in result.errors[1]
        assert result.completions == [alone[0].completions[0], [], alone[1].completions[0]]
        assert result.logprobs[1].isnan().all()
        for row, expected in zip((0, 2), alone, strict=True):
            torch.testing.assert_close(result.logprobs[row], expected.logprobs[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        ([1, math.nan, 0], {}, "lm_head.weight"),
        ([1, math.nan, 0], {"do_sample": False}, "lm_head.weight"),
        ([1, math.nan, 0], {"bad_token_ids": [1], "top_k": 1, "typical_p": 0.5, "min_p": 0.1}, "lm_head.weight"),
        ([1, INF, 0], {}, "lm_head.weight"),
        ([-INF, -INF, -INF], {}, "forbid every token"),
        ([1, 2, 3], {"bad_token_ids": [0, 1, 2]}, "forbid every token"),
        ([1, 2, 3], {"bad_token_ids": [0, 1, 2], "do_sample": False}, "forbid every token"),
        ([1, 2, -INF], {"min_new_tokens": 1, "eos_token_id": [0], "stop_token_ids": [1]}, "forbid every token"),
        ([1e38, 3e38, 2e38], {"temperature": 1e-4}, "range of float32"),
        ([-3e38, -3e38, -3e38], {"temperature": 0.1}, "range of float32"),
        ([3e38, 0, 0], {"repetition_penalty": 1e-4, "do_sample": False}, "range of float32"),
    ],
)
def test_a_row_without_a_token_ends_with_the_reason(logits, options, message):
    result = generate(fixed_logits_model(logits), [0], seed=0, return_dict_in_generate=True, **options)
    assert (result.finish_reasons, result.completions, result.lengths) == (["error"], [[]], [0])
    assert message in result.errors[0]
    assert result.sequences.tolist() == [[0]]
    with pytest.raises(GenerationError, match=message) as caught:
        generate(fixed_logits_model(logits), [0], seed=0, **options)
    assert caught.value.result.finish_reasons == ["error"]


def test_generation_error_comes_after_the_others_have_finished():
    model = fixed_logits_model([0, 1, 2])
    with pytest.raises(GenerationError, match="Row 0 ended in an error: The options forbid every token") as caught:
        generate(model, [[0, 1, 2], [0]], no_repeat_ngram_size=1, do_sample=False, max_new_tokens=2)
    assert caught.value.result.completions == [[], [2, 1]]
    assert caught.value.result.finish_reasons == ["error", "length"]


def test_an_error_after_some_tokens_keeps_them():
    result = generate(
        fixed_logits_model([0, 1, 2]), [0], no_repeat_ngram_size=1, do_sample=False, return_dict_in_generate=True
    )
    assert (result.completions, result.finish_reasons) == ([[2, 1]], ["error"])
    assert result.logprobs.isfinite().tolist() == [[True, True]]


# ---- log-probabilities and ends ----------------------------------------------------------------------------


def test_logprobs_are_the_models_log_softmax():
    model, t = tiny_model(), 5
    out = generate(
        model, [[5, 6, 7, 8, 9]] * 3, seed=4, max_new_tokens=9, top_k=5, temperature=0.5, return_dict_in_generate=True
    )
    with torch.no_grad():
        expected = model(out.sequences).logits[:, t - 1 : -1].log_softmax(-1)
    expected = expected.gather(-1, out.sequences[:, t:, None]).squeeze(-1)
    torch.testing.assert_close(out.logprobs, expected, rtol=0, atol=1e-4)
    assert (out.processed_logprobs > out.logprobs).all()


# the model's next token after each: 0 -> 1 -> 2 -> 3 -> 0 ...; prompt, options, completion, reason
CYCLE = torch.eye(4).roll(1, dims=1) * 8
ENDINGS = [
    ([0], {"max_new_tokens": 3}, [1, 2, 3], "length"),
    ([0], {"max_new_tokens": 0}, [], "length"),
    ([0, 1], {"max_length": 4}, [2, 3], "length"),
    ([0, 1], {"max_length": 2}, [], "length"),
    ([0, 1], {"max_length": 4, "max_new_tokens": 1}, [2, 3], "length"),  # max_length wins
    ([0], {"eos_token_id": 2}, [1, 2], "eos"),
    ([0], {"eos_token_id": [3, 2]}, [1, 2], "eos"),
    ([2], {"eos_token_id": 2}, [3, 0, 1, 2], "eos"),  # in the prompt it ends nothing
    ([0], {"stop_token_ids": [3]}, [1, 2, 3], "stop"),
    ([0], {"stop_token_ids": [2], "eos_token_id": 2}, [1, 2], "eos"),
    ([0], {"stop_token_ids": [1], "eos_token_id": 2}, [1], "stop"),
    ([0], {"eos_token_id": 2, "max_new_tokens": 2}, [1, 2], "eos"),
    ([0], {"eos_token_id": [], "max_new_tokens": 5}, [1, 2, 3, 0, 1], "length"),
    ([0], {"eos_token_id": 1, "bad_token_ids": [1], "max_new_tokens": 2}, [0, 0], "length"),
]


@pytest.mark.parametrize(("prompt", "options", "completion", "reason"), ENDINGS)
def test_ends(prompt, options, completion, reason):
    result = generate(table_model(CYCLE), prompt, do_sample=False, return_dict_in_generate=True, **options)
    assert (result.completions, result.finish_reasons) == ([completion], [reason])
    assert result.lengths == [len(completion)]
    assert result.logprobs.isfinite().all()  # that of the EOS as well
    assert result.logprobs.shape == result.processed_logprobs.shape == (1, len(completion))


def test_eos_of_the_config_and_how_to_switch_it_off():
    model = table_model(CYCLE, eos_token_id=[2, 3])
    options = {"do_sample": False, "max_new_tokens": 4}
    assert generate(model, [0], **options).tolist() == [[0, 1, 2]]
    assert generate(model, [0], eos_token_id=None, **options).tolist() == [[0, 1, 2]]
    assert generate(model, [0], eos_token_id=3, **options).tolist() == [[0, 1, 2, 3]]
    assert generate(model, [0], eos_token_id=[], **options).tolist() == [[0, 1, 2, 3, 0]]


# ---- presets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", _C.presets())
def test_presets_generate_as_their_options_say(preset):
    config = getattr(GenerationConfig, preset)(12, seed=5)
    model = fixed_logits_model([0.5, 1, -1, 0, 2, 0.25])
    result = generate(model, [1, 2, 1], generation_config=config, return_dict_in_generate=True)
    assert result.lengths == [12]
    by_options = generate(model, [1, 2, 1], **config.to_dict(), return_dict_in_generate=True)
    assert by_options.completions == result.completions
    tokens = [1, 2, 1]
    for token in result.completions[0]:
        assert token == next_token([0.5, 1, -1, 0, 2, 0.25], tokens, 3, config, 5).token
        tokens.append(token)


# ---- several calls in one step -----------------------------------------------------------------------------


def test_calls_with_different_options_in_one_step_do_not_touch_each_other():
    model = fixed_logits_model([0.5, 1, -1, 0, 2, 0.25, 1, 1])
    configs = [
        GenerationConfig(max_new_tokens=10, seed=i, eos_token_id=[], **options)
        for i, options in enumerate(
            [
                {"do_sample": False},
                NEUTRAL,
                NEUTRAL | {"top_k": 2},
                NEUTRAL | {"top_k": 5, "top_p": 0.7},
                NEUTRAL | {"typical_p": 0.4},
                NEUTRAL | {"min_p": 0.3, "temperature": 3},
                {"repetition_penalty": 1.5, "frequency_penalty": 0.3},
                {"bad_token_ids": list(range(8))},
                NEUTRAL | {"logit_bias": {2: 4.0}, "no_repeat_ngram_size": 2},
            ]
        )
    ]
    alone = [generate(model, [0, 1], generation_config=c, return_dict_in_generate=True) for c in configs]
    together = [Generation(model, [0, 1], config=c, want_logprobs=True) for c in configs]
    while together[0].advance():
        pass
    for one, generation in zip(alone, together, strict=True):
        result = generation.result()
        assert result.finish_reasons == one.finish_reasons
        assert result.completions == one.completions
        assert torch.equal(result.processed_logprobs, one.processed_logprobs)
    assert together[0]._engine is together[1]._engine
