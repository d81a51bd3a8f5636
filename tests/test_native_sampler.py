"""The samplers of the CPU and of CUDA against the reference: all bits of tokens, log-probabilities, reports, errors."""

import copy
import functools
import math
import random

import pytest
import torch
from models import fixed_logits_model

from demiurgic import _C, GenerationConfig
from demiurgic._build_info import CUDA_ARCHITECTURES
from demiurgic.engine import Generation

INF = math.inf
HUGE = 3e38


def gaussian(r, vocab):
    scale = r.choice([1e-7, 0.01, 1, 4, 30, 1e4, 1e30])
    return [r.gauss(0, scale) for _ in range(vocab)]


def ties(r, vocab):
    step = r.choice([0.5, 1, 3])
    return [round(r.gauss(0, 3) / step) * step for _ in range(vocab)]


def equal(r, vocab):
    return [r.choice([0.0, -1.5, 1e30])] * vocab


def zeros_of_both_signs(r, vocab):
    return [r.choice([0.0, -0.0, -0.0, 1e-45, -1e-45]) for _ in range(vocab)]


def one_far_above(r, vocab):
    logits = ties(r, vocab)
    logits[r.randrange(vocab)] = r.choice([27.0, 28.0, 81.0, 1000.0])  # e^-28 has no mass
    return logits


def huge(r, vocab):
    return [r.choice([HUGE, -HUGE, 1e38, 0.0, 1.0]) for _ in range(vocab)]


def mostly_forbidden(r, vocab):
    return [r.gauss(0, 2) if r.random() < 0.1 else -INF for _ in range(vocab)]


def all_forbidden(r, vocab):
    return [-INF] * vocab


def not_finite(r, vocab):
    logits = gaussian(r, vocab)
    logits[r.randrange(vocab)] = r.choice([math.nan, -math.nan, INF])
    return logits


def descending(r, vocab):
    return [-0.01 * i for i in range(vocab)]


LOGITS = [gaussian, gaussian, ties, ties, equal, zeros_of_both_signs, one_far_above, huge, mostly_forbidden]
LOGITS += [all_forbidden, not_finite, descending]
VOCABS = [1, 2, 3, 4, 7, 15, 16, 17, 31, 60, 127, 128, 129, 255, 256, 257, 300, 511, 513, 1000, 1024, 3001, 4999, 5000]


def random_options(r, vocab):
    token = lambda: r.randrange(vocab)  # noqa: E731
    choices = {
        "logit_bias": lambda: {token(): r.choice([r.gauss(0, 5), 1e30, -1e30]) for _ in range(r.choice([1, 40]))},
        "bad_token_ids": lambda: [token() for _ in range(r.choice([1, 300]))],
        "repetition_penalty": lambda: r.choice([r.uniform(0.5, 2), 1e-4, 1e4]),
        "repetition_context_size": lambda: r.randint(1, 6),
        "frequency_penalty": lambda: r.choice([r.gauss(0, 1), 1e4]),
        "presence_penalty": lambda: r.gauss(0, 1),
        "penalize_prompt": lambda: r.random() < 0.5,
        "no_repeat_ngram_size": lambda: r.randint(1, 4),
        "min_new_tokens": lambda: r.randint(0, 3),
        "stop_token_ids": lambda: [token()],
        "do_sample": lambda: r.random() < 0.7,
        "temperature": lambda: r.choice([0, 1e-4, 0.3, 1, 2.5, 1e4]),
        "top_k": lambda: r.choice([0, 1, 2, 5, 40, 50, 300, vocab - 1, vocab + 1]),
        "top_p": lambda: r.choice([0, 1e-9, r.random(), r.random(), 0.999, 1]),
        "typical_p": lambda: r.choice([1e-300, 1e-6 + r.random() / 2, 0.95, None]),
        "min_p": lambda: r.choice([0, 1e-300, 1e-33, 1e-12, 0.01, r.random(), 1]),
        "top_logprobs": lambda: r.choice([1, 2, 5, 20, 70, min(vocab + 1, 1000)]),
        "top_logprobs_mode": lambda: r.choice(["raw", "processed", "both"]),
        "entropy": lambda: True,
    }
    often = r.choice([0.15, 0.5])
    return {"top_k": 0, "top_p": 1} | {name: choose() for name, choose in choices.items() if r.random() < often}


def outcome(model, prompts, configs):
    """Of rows with different options that run together: tokens, both log-probabilities, the error."""
    together = [Generation(model, p, config=c, want_logprobs=True) for p, c in zip(prompts, configs, strict=True)]
    while sum(generation.advance() for generation in together):
        pass
    results = [generation.result() for generation in together]
    return [(r.completions, r.logprobs, r.processed_logprobs, r.finish_reasons, r.errors, *reports(r)) for r in results]


def reports(result):
    """What the result tells of the distributions; of those that it does not, nothing."""
    fields = ("top_logprobs", "top_logprob_ids", "entropies")
    names = [prefix + field for prefix in ("", "processed_") for field in fields]
    return [torch.zeros(0) if (values := getattr(result, name)) is None else values for name in names]


def by_reference(model, prompts, configs):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEMIURGIC_KERNELS", "reference")
        assert set(_C.kernels_info("cpu").values()) == {"reference"}
        return outcome(model, prompts, configs)


def check(model, prompts, configs, expected, label):
    for config, one, other in zip(configs, outcome(model, prompts, configs), expected, strict=True):
        for a, b in zip(one, other, strict=True):
            same = torch.equal(a.nan_to_num(7), b.nan_to_num(7)) if isinstance(a, torch.Tensor) else a == b
            assert same, (label, config, one, other)


def random_case(make, number):
    """A model of fixed logits, and rows with options of their own."""
    r = random.Random(f"{make.__name__} {number}")
    vocab = VOCABS[number]
    model = fixed_logits_model(make(r, vocab))
    options = [random_options(r, vocab) for _ in range(5)]
    configs = [
        GenerationConfig(seed=i, max_new_tokens=3, num_return_sequences=r.choice([1, 3]), eos_token_id=[0], **o)
        for i, o in enumerate(options)
    ]
    return model, [[r.randrange(vocab) for _ in range(r.randint(1, 12))] for _ in configs], configs


@functools.cache  # for all instruction sets
def random_cases(make):
    cases = [random_case(make, number) for number in range(len(VOCABS))]
    return [(*case, by_reference(*case)) for case in cases]


@pytest.mark.parametrize("make", dict.fromkeys(LOGITS), ids=lambda make: make.__name__)
def test_native_is_the_reference(isa, make):
    assert _C.kernels_info("cpu")["sample"] == _C.kernels_info("cpu")["log_probability"] == isa
    reasons = set()
    for number, (model, prompts, configs, expected) in enumerate(random_cases(make)):
        check(model, prompts, configs, expected, number)
        reasons |= {reason for result in expected for reason in result[3]}
    assert reasons == {"error"} if make in (all_forbidden, not_finite) else reasons >= {"length", "error"}


@pytest.mark.cuda
@pytest.mark.parametrize("make", dict.fromkeys(LOGITS), ids=lambda make: make.__name__)
def test_cuda_is_the_reference(make):
    name = "cuda" if CUDA_ARCHITECTURES else "reference"
    assert _C.kernels_info("cuda")["sample"] == _C.kernels_info("cuda")["log_probability"] == name
    for number, (model, prompts, configs, expected) in enumerate(random_cases(make)):
        check(copy.deepcopy(model).cuda(), prompts, configs, expected, number)


REPORTS = {"top_logprobs": 20, "top_logprobs_mode": "both", "entropy": True}
FILTERS = [
    {"do_sample": False},
    {"do_sample": False, **REPORTS},
    {**REPORTS},
    {"top_k": 50, "top_p": 0.95, **REPORTS},
    {"typical_p": 0.4, **REPORTS, "top_logprobs": 1000},
    {"do_sample": False, "repetition_penalty": 1.3},
    {},
    {"temperature": 0.7},
    {"top_k": 50},
    {"top_k": 20_000, "top_p": 0.9},
    {"top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": 0.1, "presence_penalty": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.9, "temperature": 100},
    {"min_p": 0.05},
    {"typical_p": 0.4},
    {"top_k": 100, "typical_p": 0.4, "min_p": 0.1},
]


@functools.cache
def large_cases():
    vocab, cases = 152_000, []
    configs = [
        GenerationConfig(seed=i, max_new_tokens=2, **{"top_k": 0, "top_p": 1} | o) for i, o in enumerate(FILTERS)
    ]
    for scale in (0.5, 3):
        generator = torch.Generator().manual_seed(0)
        model = fixed_logits_model(torch.randn(vocab, generator=generator) * scale)
        prompts = [torch.randint(vocab, (500,), generator=generator).tolist() for _ in configs]
        cases.append((model, prompts, configs, by_reference(model, prompts, configs)))
    return cases


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_vocabulary(threads):
    cases, before = large_cases(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for case in cases:
            check(*case, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.cuda
def test_a_large_vocabulary_on_cuda():
    for model, prompts, configs, expected in large_cases():
        check(copy.deepcopy(model).cuda(), prompts, configs, expected, "cuda")
