"""What users pass as input_ids and attention_mask, brought to one form: a list of prompts without padding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demiurgic.caller import warn_caller


class Prompts(NamedTuple):
    """Prompts without padding, and what the result needs to know of their first form."""

    ids: list[list[int]]
    width: int  # T: columns of the prompts in the result
    columns: list[int]  # of [B, T], where each row's first token stands; unequal rows are padded on the left
    device: torch.device | None  # of input_ids; None where they were lists


def read_prompts(
    input_ids: Any, attention_mask: Any, pad_token_id: int | None, special_ids: Collection[int]
) -> Prompts:
    """Prompts from a tensor [B, T] or [T] of integers, a list of ids, or a list of lists of any lengths.

    Padding is what `attention_mask` says. Without a mask, runs of `pad_token_id` at a row's edges are padding if that
    id is known and none of `special_ids` (BOS and EOS).

    Raises:
        TypeError: ids that are no integers.
        ValueError: another shape, no row, a mask of another shape, with values other than 0 and 1, or with a hole.
    """
    rows, device = _rows(input_ids)
    if attention_mask is not None:
        masks = _mask(attention_mask, rows)
        kept = [_kept_by_mask(i, mask) for i, mask in enumerate(masks)]
    elif pad_token_id is not None and pad_token_id not in special_ids:
        kept = [_without_edges(row, pad_token_id) for row in rows]
    else:
        kept = [range(len(row)) for row in rows]
        if len(rows) > 1 and any(row and pad_token_id in (row[0], row[-1]) for row in rows):
            warn_caller(
                f"Rows of input_ids begin or end in the id {pad_token_id}, which is the padding's and BOS or EOS as "
                "well. They are taken as tokens; pass attention_mask to say which are padding."
            )
    width = max(len(row) for row in rows)
    prompts = [row[span.start : span.stop] for row, span in zip(rows, kept, strict=True)]
    equal = all(len(row) == width for row in rows)
    columns = [span.start if equal else width - len(span) for span in kept]
    return Prompts(prompts, width, columns, device)


def _rows(input_ids: Any) -> tuple[list[list[int]], torch.device | None]:
    """Rows as lists of ids, padding included."""
    if isinstance(input_ids, (list, tuple)):
        if not input_ids:
            raise ValueError("input_ids is empty; give at least one prompt.")
        if any(isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) for row in input_ids):
            return [_one_row(i, row) for i, row in enumerate(input_ids)], None
        return [_one_row(0, input_ids)], None
    ids = _as_tensor("input_ids", input_ids, "a tensor of integers [B, T], or a list of ids or prompts")
    _check_integers(ids)
    if ids.dim() not in (1, 2) or ids.numel() == 0:
        raise ValueError(f"input_ids has the shape {list(ids.shape)}; give [B, T] or [T] with at least one token.")
    device = ids.device if isinstance(input_ids, Tensor) else None
    return (ids if ids.dim() == 2 else ids[None]).tolist(), device


def _one_row(index: int, row: Any) -> list[int]:
    ids = _as_tensor(f"Row {index} of input_ids", row, "integers")
    if ids.dim() != 1:
        raise ValueError(f"Row {index} of input_ids has the shape {list(ids.shape)}; give one list of ids a prompt.")
    if ids.numel() == 0:
        return []  # refused by generate, in the engine, which names the row; nothing to score
    _check_integers(ids)
    return ids.tolist()


def _as_tensor(name: str, values: Any, expected: str) -> Tensor:
    """`values` if they are a tensor, else one on the CPU, whatever the default device is."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is of type {type(values).__name__} and no tensor can be made of it ({error}); give {expected}."
        ) from None


def _check_integers(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"input_ids is of {ids.dtype}; give integers.")
    if ids.is_meta:
        raise ValueError("input_ids is on the meta device and holds no numbers.")


def _mask(attention_mask: Any, rows: list[list[int]]) -> list[list[float]]:
    if (
        isinstance(attention_mask, (list, tuple))
        and len({len(m) for m in attention_mask if isinstance(m, (list, tuple))}) > 1
    ):
        raise ValueError("attention_mask has rows of several lengths; lists of unequal prompts need no mask.")
    mask = _as_tensor("attention_mask", attention_mask, "a tensor [B, T] of zeros and ones")
    mask = mask[None] if mask.dim() == 1 else mask
    if mask.is_meta:
        raise ValueError("attention_mask is on the meta device and holds no numbers.")
    widths = {len(row) for row in rows}
    if len(widths) > 1 or list(mask.shape) != [len(rows), *widths]:
        shape = [len(rows), *widths] if len(widths) == 1 else "prompts of several lengths"
        raise ValueError(
            f"attention_mask has the shape {list(mask.shape)}, but input_ids is {shape}; give one entry a token "
            "(lists of unequal prompts need no mask)."
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must hold 1 where a token counts and 0 where it is padding, nothing else.")
    values: list[list[float]] = mask.tolist()
    return values


def _kept_by_mask(index: int, mask: list[float]) -> range:
    """The columns of a row that are no padding."""
    kept = [i for i, counts in enumerate(mask) if counts]
    if not kept:
        return range(0)
    if kept[-1] - kept[0] + 1 != len(kept):
        raise ValueError(
            f"attention_mask has a hole in row {index}: a 0 between ones. Padding may stand at the edges only."
        )
    return range(kept[0], kept[-1] + 1)


def _without_edges(row: list[int], pad: int) -> range:
    """The columns of a row without the runs of `pad` at its edges."""
    first, end = 0, len(row)
    while first < end and row[first] == pad:
        first += 1
    while end > first and row[end - 1] == pad:
        end -= 1
    return range(first, end)
