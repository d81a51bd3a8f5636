"""Speculation changes nothing but the time: the same tokens, log-probabilities, ends and errors, compared with ==."""

import copy
import random
import threading
from functools import cache

import pytest
import torch
from models import fixed_logits_model, table_model, tiny_model

from demiurgic import _C, GenerationConfig, GenerationError, generate
from demiurgic.engine import Generation

VOCAB = 23  # so small that short runs often stand somewhere before
BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32


@cache
def model():
    return tiny_model(vocab_size=VOCAB)


@cache
def narrow_model():
    return tiny_model(vocab_size=VOCAB).bfloat16()


@cache
def drafting_models():
    """One that agrees always, one often, one rarely; and one of other shapes."""
    often = copy.deepcopy(model())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in often.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    rarely = tiny_model(vocab_size=VOCAB, num_hidden_layers=1)
    other = tiny_model(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    return [model(), often, rarely, other.bfloat16()]


def run(target, prompts, options, *, limits=None, always=True, **speculation):
    """The result of one call and the counters of its engine at its end."""
    drafts = {"draft_model": speculation.pop("draft_model", None), "always_drafts": always}
    config = GenerationConfig(**options, **speculation)
    with Generation(target, prompts, config=config, want_logprobs=True, **drafts, **(limits or {})) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def check_same(result, expected):
    assert result.completions == expected.completions
    assert result.finish_reasons == expected.finish_reasons
    assert result.errors == expected.errors
    assert torch.equal(result.sequences, expected.sequences)
    for name in ("logprobs", "processed_logprobs"):
        assert torch.equal(getattr(result, name).nan_to_num(7), getattr(expected, name).nan_to_num(7)), name


def random_prompt(dice):
    """Now and then of a few runs that come again and again."""
    length = dice.choice([1, 2, 7, 15, 16, 17, 40])
    if dice.random() < 0.5:
        return [dice.randrange(VOCAB) for _ in range(length)]
    runs = [[dice.randrange(VOCAB) for _ in range(dice.randint(1, 6))] for _ in range(2)]
    return [token for _ in range(length) for token in dice.choice(runs)][:length]


def random_options(dice):
    def some(**choices):
        return {name: dice.choice(values) for name, values in choices.items() if dice.random() < 0.25}

    ids = [dice.randrange(VOCAB) for _ in range(3)]
    options = {"max_new_tokens": dice.choice([0, 1, 2, 9, 24, 40]), "seed": dice.randrange(2**32), "eos_token_id": []}
    options |= {"do_sample": False} if dice.random() < 0.3 else {"temperature": dice.choice([0.3, 0.8, 1.5])}
    options |= some(
        top_k=[1, 5], top_p=[0.5, 1.0], typical_p=[0.6], min_p=[0.1], repetition_penalty=[1.3, 0.7],
        frequency_penalty=[0.4, -0.3], presence_penalty=[0.5], repetition_context_size=[3], penalize_prompt=[False],
        no_repeat_ngram_size=[1, 2, 4], logit_bias=[{ids[0]: 4.0}], bad_token_ids=[ids[:2]], stop_token_ids=[ids[1:]],
        eos_token_id=[ids[2:]], num_return_sequences=[2, 3], use_cache=[False],
    )  # fmt: skip
    if not options.get("use_cache", True):  # each token computes all before it
        options["max_new_tokens"] %= 10
    return options | some(min_new_tokens=[min(5, options["max_new_tokens"])], max_length=[17, 33])


def random_limits(dice, options):
    """Sometimes a cache that is too small for all rows, short steps, few rows at a time."""
    blocks = 6 if options["max_new_tokens"] else 1
    return {
        "cache_bytes": dice.choice([None, None, blocks * BLOCK_BYTES, 2 * blocks * BLOCK_BYTES]),
        "max_step_tokens": dice.choice([512, 512, 20, 5, 1]),
        "max_running": dice.choice([256, 256, 2, 1]),
    }


def random_speculation(dice):
    most = {"max_draft_tokens": dice.choice([1, 2, 5, 16, 128])}
    return most | ({"speculate": "ngram"} if dice.random() < 0.5 else {"draft_model": dice.choice(drafting_models())})


def check_random(number):
    """One configuration drawn from a number; how many drafts it had, and how many were accepted."""
    dice = random.Random(number)
    options, prompts = random_options(dice), [random_prompt(dice) for _ in range(dice.choice([1, 1, 2, 4]))]
    limits, speculation = random_limits(dice, options), random_speculation(dice)
    if "max_length" in options:
        limits["cache_bytes"] = None  # prompts may be longer, and rows of any length fit
    target = narrow_model() if dice.random() < 0.2 else model()
    expected, _ = run(target, prompts, options, limits=limits)
    result, counters = run(target, prompts, options, limits=limits, always=dice.random() < 0.8, **speculation)
    check_same(result, expected)
    assert counters["num_used_blocks"] == 0
    assert limits["cache_bytes"] is None or counters["cache_bytes"] <= limits["cache_bytes"]
    assert all(0 <= accepted <= drafted for accepted, drafted in zip(result.accepted, result.drafted, strict=True))
    return sum(result.drafted), sum(result.accepted)


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_random_configurations(first):
    counts = [check_random(number) for number in range(first, first + 50)]
    assert sum(drafted > accepted > 0 for drafted, accepted in counts) > 5  # it is not a test of steps without drafts


@pytest.mark.parametrize("isa", _C.isa_names())
def test_random_configurations_on_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", isa)
    counts = [check_random(number) for number in range(1000, 1020)]
    assert sum(accepted for _, accepted in counts) > 0
