"""What a call tells of the distributions beside its tokens: top_logprobs, entropy, prompt_logprobs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from demiurgic import _C

_DISTRIBUTIONS = {"raw": [False], "processed": [True], "both": [False, True]}  # by top_logprobs_mode; True: processed


def refuse_unreturned(config: _C.GenerationConfig) -> None:
    """ValueError where an option asks for numbers that a call which returns ids alone could not give."""
    for name in ("top_logprobs", "prompt_logprobs", "entropy"):
        if value := getattr(config, name):
            raise ValueError(
                f"{name} is {value}, but generate returns the ids alone; pass return_dict_in_generate=True, "
                f"or leave {name} out."
            )


def read_reports(call: _C.Call, config: _C.GenerationConfig, new: int, device: torch.device) -> dict[str, Any]:
    """The fields of GenerationOutput that the options ask for, [rows, new, ...] on `device`."""
    fields: dict[str, Any] = {}
    if not config.top_logprobs and not config.entropy:
        return fields
    num_rows = call.num_rows
    mode = fields["top_logprobs_mode"] = config.top_logprobs_mode
    for processed in _DISTRIBUTIONS[mode]:
        prefix = "processed_" if mode == "both" and processed else ""
        rows = [call.reports(row, processed) for row in range(num_rows)]
        if k := config.top_logprobs:
            fields[f"{prefix}top_logprobs"] = _padded([r[1] for r in rows], new * k, torch.nan).view(num_rows, new, k)
            fields[f"{prefix}top_logprob_ids"] = _padded([r[0] for r in rows], new * k, -1).view(num_rows, new, k)
        if config.entropy:
            fields[f"{prefix}entropies"] = _padded([r[2] for r in rows], new, torch.nan)
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in fields.items()}


def event_numbers(call: _C.Call, config: _C.GenerationConfig, row: int, start: int, count: int) -> dict[str, Any]:
    """The numbers of StreamEvent for `count` tokens of a row from the `start`-th on."""
    numbers: dict[str, Any] = {
        "logprobs": call.logprobs(row, start)[:count],  # another thread may have computed more by now
        "processed_logprobs": call.processed_logprobs(row, start)[:count],
    }
    if not config.top_logprobs and not config.entropy:
        return numbers
    for processed in _DISTRIBUTIONS[config.top_logprobs_mode]:
        prefix = "processed_" if config.top_logprobs_mode == "both" and processed else ""
        ids, logprobs, entropies = call.reports(row, processed, start)
        if k := config.top_logprobs:
            listed = [sum(token >= 0 for token in ids[i * k : (i + 1) * k]) for i in range(count)]
            for name, values in (("top_logprobs", logprobs), ("top_logprob_ids", ids)):
                numbers[prefix + name] = [values[i * k : i * k + n] for i, n in enumerate(listed)]
        if config.entropy:
            numbers[f"{prefix}entropies"] = entropies[:count]
    return numbers


def _padded(values: list[Any], width: int, filler: float) -> Tensor:
    """[rows, width], float32 or, with an int to fill in, int64."""
    dtype = torch.int64 if isinstance(filler, int) else torch.float32
    padded = torch.full((len(values), width), filler, dtype=dtype, device="cpu")
    for row, numbers in enumerate(values):
        padded[row, : len(numbers)] = torch.tensor(numbers, dtype=dtype, device="cpu")
    return padded


def read_prompt_logprobs(call: _C.Call, prompt_lengths: list[int], width: int, device: torch.device) -> Tensor:
    """float32 [rows, width] on `device`, nan at padding and at each row's first token."""
    result = torch.full((call.num_rows, width), torch.nan, dtype=torch.float32, device="cpu")
    for row, length in enumerate(prompt_lengths):
        numbers = call.prompt_logprobs(row)
        if numbers:
            result[row, width - length + 1 :] = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    return result.to(device)
