"""Rotary position embeddings (RoFormer, arXiv:2104.09864): the frequencies of each supported scaling.

The module and the C++ engine both take these very numbers, computed on the CPU in float32 in the order of
operations of Hugging Face transformers (`modeling_rope_utils.py`), whose checkpoints expect them.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demiurgic.config import DemiurgicConfig, rope_type_of


class Rotary(NamedTuple):
    """What the frequencies depend on, of a config."""

    head_dim: int
    theta: float
    max_positions: int
    scaling: tuple[tuple[str, Any], ...]  # the items of rope_scaling

    @classmethod
    def of(cls, config: DemiurgicConfig) -> Rotary:
        scaling = tuple((config.rope_scaling or {}).items())
        return cls(config.head_dim, config.rope_theta, config.max_position_embeddings, scaling)


def rotary_frequencies(config: DemiurgicConfig) -> tuple[Tensor, float]:
    """Frequencies of the rotary embedding and the factor on its cosines and sines.

    Position p turns the pair (i, i + head_dim/2) by the angle `p * frequencies[i]`, a float32 product.

    Returns:
        (frequencies, scale): float32 [head_dim / 2] on the CPU, radians per position; 1.0 except for yarn.
    Raises:
        ValueError: a rope_scaling that is not supported, see DemiurgicConfig.
    """
    return _frequencies(Rotary.of(config))


def rotary_numbers(config: DemiurgicConfig) -> tuple[tuple[float, ...], float]:
    """The same as Python's numbers, remembered: a call of few tokens would wait for a dozen of small tensors."""
    return _numbers(Rotary.of(config))


@functools.lru_cache(maxsize=64)
def _numbers(rotary: Rotary) -> tuple[tuple[float, ...], float]:
    frequencies, scale = _frequencies(rotary)
    return tuple(frequencies.tolist()), scale


def _frequencies(rotary: Rotary) -> tuple[Tensor, float]:
    scaling = dict(rotary.scaling)
    match rope_type_of(scaling):
        case "default":
            return 1.0 / _wavelengths(rotary), 1.0
        case "linear":
            return 1.0 / _wavelengths(rotary) / scaling["factor"], 1.0
        case "llama3":
            return _llama3(rotary, scaling), 1.0
        case "yarn":
            return _yarn(rotary, scaling)
        case other:
            raise ValueError(f"rope_scaling type {other!r} is not supported.")


def _wavelengths(rotary: Rotary) -> Tensor:
    """Positions per radian, theta^(2i/d): float32 [head_dim / 2]."""
    even = torch.arange(0, rotary.head_dim, 2, dtype=torch.float32, device="cpu")
    return rotary.theta ** (even / rotary.head_dim)


def _llama3(rotary: Rotary, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1 (arXiv:2407.21783): slow frequencies divided by `factor`, fast ones kept, a blend between."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling.get("original_max_position_embeddings") or rotary.max_positions
    frequencies = 1.0 / _wavelengths(rotary)
    turn = 2 * math.pi / frequencies  # positions per full turn
    slow, fast = turn > context / low, turn < context / high
    blend = (context / turn - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    return torch.where(slow, frequencies / factor, torch.where(fast, frequencies, blended))


def _yarn(rotary: Rotary, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071): a ramp over the dimensions, from kept to interpolated; scales cosines too."""
    context = scaling.get("original_max_position_embeddings") or rotary.max_positions
    factor = scaling.get("factor") or rotary.max_positions / context
    head_dim = rotary.head_dim

    def dimension_that_turns(times: float) -> float:  # this often within the original context
        return head_dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low = dimension_that_turns(scaling.get("beta_fast") or 32)
    high = dimension_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step, not a division by zero
    index = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    kept = 1 - torch.clamp((index - low) / (high - low), 0, 1)

    wavelengths = _wavelengths(rotary)
    frequencies = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
    return frequencies, _yarn_scale(factor, scaling)


def _yarn_scale(factor: float, scaling: dict[str, Any]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)
