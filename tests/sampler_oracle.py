"""The sampler's arithmetic bit by bit, in numpy: what every kernel must reproduce with `==`.

float32 operations round once each and are never fused; masses are integers; nothing depends on the order of a sum.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demiurgic import GenerationConfig

Floats = NDArray[np.float32]
f32 = np.float32

EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LOG_COEFFICIENTS = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
MASS_BITS, NUCLEUS_BITS = 40, 30


class Sample(NamedTuple):
    token: int
    logprob: np.float32
    processed_logprob: np.float32


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011) on 32-bit words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [product1 >> 32 ^ c[1] ^ k[0], product1 & 0xFFFFFFFF, product0 >> 32 ^ c[3] ^ k[1], product0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def philox(key: int, counter: int, stream: int) -> int:
    """The first 64 bits, low word first."""
    words = [counter & 0xFFFFFFFF, counter >> 32, stream & 0xFFFFFFFF, stream >> 32]
    low, high, *_ = philox4x32(words, [key & 0xFFFFFFFF, key >> 32])
    return high << 32 | low


def derive_seed(seed: int, i: int) -> int:
    return seed if i == 0 else philox(seed, i, stream=1)


def polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    result = x * f32(coefficients[0]) + f32(coefficients[1])
    for coefficient in coefficients[2:]:
        result = result * x + f32(coefficient)
    return result


def exp(x: Floats) -> Floats:
    """e^x for x <= 0"""
    x = np.maximum(x, f32(-80))
    k = np.floor(x * f32(1.44269504088896341) + f32(0.5))
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    return np.ldexp(polynomial(r, EXP_COEFFICIENTS) * (r * r) + r + f32(1), k.astype(np.int32))


def log(x: np.float32) -> np.float32:
    fraction, exponent = np.frexp(x)  # [1/2, 1)
    fraction, exponent = fraction * f32(2), exponent - 1
    if fraction > f32(1.41421356):
        fraction, exponent = fraction * f32(0.5), exponent + 1
    f, k = fraction - f32(1), f32(exponent)
    square = f * f
    p = f + (polynomial(f, LOG_COEFFICIENTS) * f * square - square * f32(0.5))
    return (p + k * LN2_LOW) + k * LN2_HIGH


def integer_masses(x: Floats) -> NDArray[np.int64]:
    return (x * f32(2**MASS_BITS)).astype(np.int64)


class Distribution:
    def __init__(self, logits: Floats) -> None:
        self.shifted = logits - logits.max()
        self.exponentials = exp(self.shifted)
        self.masses = integer_masses(self.exponentials)
        self.total = int(self.masses.sum())
        self.scale = f32(self.total) * f32(2.0**-MASS_BITS)

    def log_probabilities(self) -> Floats:
        return self.shifted - log(self.scale)


def without(logits: Floats, forbidden: NDArray[np.bool_]) -> Floats:
    return np.where(forbidden, f32(-np.inf), logits)


def edited(logits: Floats, tokens: list[int], prompt_length: int, config: GenerationConfig) -> Floats:
    """Steps 1 to 5."""
    logits = logits.copy()
    for token, bias in (config.logit_bias or {}).items():
        logits[token] += f32(bias)
    penalty = f32(config.repetition_penalty)
    for token in set(tokens[-(config.repetition_context_size or len(tokens)) :]):
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    for token, count in Counter(tokens if config.penalize_prompt else tokens[prompt_length:]).items():
        logits[token] -= f32(config.frequency_penalty) * f32(count)
        logits[token] -= f32(config.presence_penalty)
    banned = set(config.bad_token_ids or []) | set(repeating(tokens, config.no_repeat_ngram_size))
    if len(tokens) < config.min_length or len(tokens) - prompt_length < config.min_new_tokens:
        eos = config.eos_token_id
        banned |= {eos} if isinstance(eos, int) else set(eos or [])
        banned |= set(config.stop_token_ids or [])
    logits[list(banned)] = -np.inf
    return logits


def repeating(tokens: list[int], n: int) -> list[int]:
    """Tokens that would repeat an n-gram."""
    if n == 0:
        return []
    last = tokens[len(tokens) - n + 1 :]
    return [tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == last]


def filtered(logits: Floats, config: GenerationConfig) -> Floats:
    """Steps 7 to 10."""
    logits = logits / f32(config.temperature)
    if 0 < config.top_k < len(logits):
        logits = without(logits, logits < np.sort(logits)[-config.top_k])
    p = config.top_p if config.typical_p is None else config.typical_p
    nucleus = int(np.floor(p * 2**NUCLEUS_BITS + 0.5))
    if nucleus < 2**NUCLEUS_BITS:
        d = Distribution(logits)
        order = -logits if config.typical_p is None else distance_from_entropy(d)
        ids = np.argsort(order, kind="stable")
        mass_before = np.cumsum(d.masses[ids]) - d.masses[ids]
        target = max(1, d.total * nucleus >> NUCLEUS_BITS)
        logits = without(logits, np.isin(np.arange(len(logits)), ids[mass_before < target], invert=True))
    if config.min_p > 0:
        logits = without(logits, exp(logits - logits.max()) < f32(config.min_p))
    return logits


def distance_from_entropy(d: Distribution) -> Floats:
    return np.abs(-d.log_probabilities() - entropy_of(d))


class Report(NamedTuple):
    ids: list[int]
    logprobs: list[float]
    entropy: float


def report(logits: Floats, k: int) -> Report:
    """The k most likely tokens, the lowest id first on ties, but none at -inf; and the entropy in nats."""
    d = Distribution(logits)
    ids = [int(i) for i in np.argsort(-logits, kind="stable")[:k] if logits[i] > -np.inf]
    return Report(ids, d.log_probabilities()[ids].tolist(), float(entropy_of(d)))


def entropy_of(d: Distribution) -> np.float32:
    with np.errstate(invalid="ignore"):  # 0 * inf of forbidden tokens
        terms = np.where(d.masses > 0, d.exponentials / d.scale * -d.log_probabilities(), f32(0))
    return f32(integer_masses(terms).sum()) * f32(2.0**-MASS_BITS)


def draw(d: Distribution, bits: int) -> int:
    return int((np.cumsum(d.masses) <= (bits * d.total >> 64)).sum())


def processed_logits(raw: Floats, tokens: list[int], prompt_length: int, config: GenerationConfig) -> Floats:
    """What the options leave of `raw`."""
    processed = edited(raw, tokens, prompt_length, config)
    return filtered(processed, config) if config.do_sample and config.temperature > 0 else processed


def next_token(logits: Any, tokens: list[int], prompt_length: int, config: GenerationConfig, seed: int) -> Sample:
    """What the sampler must give after `tokens`, in the order of sampling, for finite float32 logits or -inf."""
    raw = np.asarray(logits, dtype=np.float32)
    processed = processed_logits(raw, tokens, prompt_length, config)
    if config.do_sample and config.temperature > 0:
        token = draw(Distribution(processed), philox(seed, len(tokens), stream=0))
    else:
        token = int(processed.argmax())
    return Sample(token, *(Distribution(logits).log_probabilities()[token] for logits in (raw, processed)))
