"""Penalties and bans are kept up to date token by token: in long rows they are what the oracle makes of all tokens."""

import random

import pytest
from models import fixed_logits_model, tiny_model
from same_bits import check_same_bits
from sampler_oracle import next_token

from demiurgic import GenerationConfig, generate
from demiurgic.engine import Generation

VOCAB = 23
NEUTRAL = {"temperature": 1, "top_k": 0, "top_p": 1, "eos_token_id": [0]}
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.05, "presence_penalty": 0.2}
OPTIONS = [
    PENALTIES,
    PENALTIES | {"penalize_prompt": False},
    PENALTIES | {"repetition_context_size": 1},
    PENALTIES | {"repetition_context_size": 7, "penalize_prompt": False},
    PENALTIES | {"repetition_context_size": 19},  # tokens of the prompt leave the window one by one
    PENALTIES | {"repetition_context_size": 100},
    {"repetition_penalty": 0.8, "repetition_context_size": 3, "logit_bias": {1: 0.5, 7: -1.0}},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "bad_token_ids": [4, 4, 9]},
    {"no_repeat_ngram_size": 4, "repetition_penalty": 1.5, "repetition_context_size": 11},
    {"no_repeat_ngram_size": 400},
    {"min_length": 60, "stop_token_ids": [3, 5]},
    {"min_new_tokens": 40, "stop_token_ids": [0, 3], "bad_token_ids": [3], "no_repeat_ngram_size": 3},
    {"min_new_tokens": 30, "eos_token_id": [0, VOCAB + 5], "presence_penalty": -0.1},  # an id outside the vocabulary
    PENALTIES | {"no_repeat_ngram_size": 3, "min_length": 50, "logit_bias": {0: 2.0}, "bad_token_ids": [2]},
]


def expected_row(logits, prompt, config, new):
    tokens, logprobs = list(prompt), []
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id)
    ends |= set(config.stop_token_ids or [])
    while len(logprobs) < new and (not logprobs or tokens[-1] not in ends):
        sample = next_token(logits, tokens, len(prompt), config, config.seed)
        tokens.append(sample.token)
        logprobs.append(float(sample.processed_logprob))
    return tokens[len(prompt) :], logprobs


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_edits_of_long_rows_are_those_made_anew(number):
    r = random.Random(number)
    logits = [r.gauss(0, 1) for _ in range(VOCAB)]
    options = NEUTRAL | {"logit_bias": {0: -3.0}} | OPTIONS[number]  # so that EOS comes late
    for num_prompt in (1, 19, 90):
        prompt = [r.randrange(VOCAB) for _ in range(num_prompt)]
        config = GenerationConfig(max_new_tokens=150, seed=number, **options)
        known = config.replace(eos_token_id=[token for token in options["eos_token_id"] if token < VOCAB])
        expected = expected_row(logits, prompt, known, 150)
        model = fixed_logits_model(logits, eos_token_id=options["eos_token_id"])  # a model's config may name any id
        given = config.replace(eos_token_id=None)
        result = generate(model, prompt, generation_config=given, return_dict_in_generate=True)
        assert result.errors == [None]
        assert (result.completions[0], result.processed_logprobs[0].tolist()) == expected
        assert min(len(expected[0]), 150) >= max(options.get("min_new_tokens", 1), 1)


@pytest.mark.parametrize("options", [OPTIONS[3], OPTIONS[9], OPTIONS[12]])
def test_edits_outlive_a_preemption(options):
    model = tiny_model()
    prompts = [[5, 6, 7, 5, 6], [8, 9, 8], [10] * 20, [11, 12]]
    settings = NEUTRAL | {"seed": 3, "max_new_tokens": 60, "eos_token_id": []} | options
    config = GenerationConfig(**settings)
    alone = generate(model, prompts, generation_config=config, return_dict_in_generate=True)
    block_bytes = 2 * 2 * 16 * 2 * 8 * 4  # k and v, layers, tokens, heads, head_dim, float32
    with Generation(model, prompts, config=config, want_logprobs=True, cache_bytes=8 * block_bytes) as generation:
        while generation.advance():
            pass
        assert generation._engine.counters()["num_preemptions"] > 0
    assert generation.result().completions == alone.completions
    check_same_bits(generation.result().processed_logprobs, alone.processed_logprobs)


@pytest.mark.parametrize("options", [OPTIONS[4], OPTIONS[8]])
def test_copies_of_a_prompt_have_edits_of_their_own(options):
    config = GenerationConfig(**NEUTRAL | {"num_return_sequences": 6, "max_new_tokens": 50, "seed": 1} | options)
    model, prompt = tiny_model(), list(range(5, 25)) * 2
    together = generate(model, prompt, generation_config=config, return_dict_in_generate=True)
    for row, seed in enumerate(together.seeds):
        alone = generate(model, prompt, generation_config=config.replace(seed=[seed], num_return_sequences=1))
        assert alone[0, len(prompt) :].tolist() == together.completions[row]
