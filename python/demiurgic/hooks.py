"""Callables of the user's that edit logits or end rows, called once a step with all live rows of their call.

R live rows, T columns, V vocabulary. A row of `input_ids` is padded on the left, first as its prompt is in the result
and then to the longest live row, so that its last token always stands in the last column.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Processor = Callable[..., Any]
Criterion = Callable[..., Any]


class Step(NamedTuple):
    """What one step shows to a hook."""

    input_ids: Tensor  # int64 [R, T]
    scores: Tensor  # float32 [R, V]
    rows: Tensor  # int64 [R], the rows' numbers in the result, ascending
    lengths: Sequence[int]  # tokens of each row, its prompt included and padding not


class Hooks:
    """The logits processors and stopping criteria of one call, each a callable of a Step."""

    def __init__(self, processors: Sequence[Hook], criteria: Sequence[Hook]) -> None:
        self.processors, self.criteria = list(processors), list(criteria)

    def process(self, input_ids: Tensor, scores: Tensor, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """float32 [R, V]: `scores` after all processors, in their order."""
        for processor in self.processors:
            given = scores
            scores = _checked_scores(processor(Step(input_ids, given, rows, lengths)), given, processor.name)
        return scores

    def stop(self, input_ids: Tensor, scores: Tensor, rows: Tensor, lengths: Sequence[int]) -> list[bool]:
        """Of each row, whether a criterion ends it."""
        ended = [False] * len(lengths)
        for criterion in self.criteria:
            answers = _answers(criterion(Step(input_ids, scores, rows, lengths)), len(ended), criterion.name)
            ended = [was or now for was, now in zip(ended, answers, strict=True)]
        return ended


class Hook:
    """A callable of the user's as a callable of a Step."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.name = name_of(call)
        self._takes_rows = takes_rows(call)

    def __call__(self, step: Step) -> Any:
        if self._takes_rows:
            return self.call(step.input_ids, step.scores, step.rows)
        return self.call(step.input_ids, step.scores)


def name_of(call: Any) -> str:
    name: str = getattr(call, "__qualname__", type(call).__qualname__)
    return name.rpartition("<locals>.")[2]


def takes_rows(call: Callable[..., Any]) -> bool:
    """Whether row numbers are its third argument: a third positional parameter without a default, or one named rows."""
    try:
        signature = inspect.signature(call.forward if isinstance(call, nn.Module) else call)
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "rows")


def hooks_in(keyword: str, given: Any) -> list[Any]:
    """The callables in what the user gave: None, one, or a list or tuple of them, which may hold lists again.

    Raises:
        TypeError: something that cannot be called.
    """
    if given is None:
        return []
    return _flattened(keyword, given)


def _flattened(keyword: str, given: Any) -> list[Any]:
    if isinstance(given, (list, tuple)):
        return [hook for entry in given for hook in _flattened(keyword, entry)]
    if not callable(given):
        raise TypeError(
            f"{keyword} holds {given!r} of type {type(given).__name__}, which cannot be called; give a callable of "
            "(input_ids, scores), or a list of such."
        )
    return [given]


def _checked_scores(result: Any, given: Tensor, name: str) -> Tensor:
    wanted = f"return float32 {list(given.shape)} on {given.device}, the scores that it was given or others"
    if not isinstance(result, Tensor):
        raise TypeError(f"The logits processor {name} returned {_kind(result)}; {wanted}.")
    if result.dtype != given.dtype:
        raise TypeError(f"The logits processor {name} returned {result.dtype}; {wanted}.")
    if result.shape != given.shape or result.device != given.device:
        raise ValueError(
            f"The logits processor {name} returned the shape {list(result.shape)} on {result.device}; {wanted}."
        )
    return result.detach()


def _answers(result: Any, num_rows: int, name: str) -> list[bool]:
    """One bool a row of what a criterion returned: a bool for all, or a tensor of one a row."""
    if isinstance(result, Tensor) and result.dtype == torch.bool:
        if result.dim() == 0:
            return [bool(result)] * num_rows
        if list(result.shape) == [num_rows]:
            answers: list[bool] = result.tolist()
            return answers
        raise ValueError(
            f"The stopping criterion {name} returned the shape {list(result.shape)}; return a bool, or one for each of "
            f"the {num_rows} rows that it was given."
        )
    if type(result).__name__ in ("bool", "bool_"):  # Python's and numpy's
        return [bool(result)] * num_rows
    raise TypeError(
        f"The stopping criterion {name} returned {_kind(result)}; return a bool, or a tensor of bools, one for each of "
        f"the {num_rows} rows that it was given."
    )


def _kind(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a tensor of {result.dtype}"
    return "None" if result is None else f"something of type {type(result).__name__}"
