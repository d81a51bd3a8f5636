"""Hugging Face's stock logits processors and stopping criteria: how they are told, and how they are called.

transformers is never imported: an object of its tells by its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from demiurgic import _C
from demiurgic.hooks import Hook, Step

PROCESSORS = "transformers.generation.logits_process"
CRITERIA = "transformers.generation.stopping_criteria"


class Surroundings(NamedTuple):
    """What the meaning of a stock processor or criterion depends on."""

    config: _C.GenerationConfig  # eos_token_id is resolved
    given: Collection[str]  # options that the user gave
    width: int  # T: columns of the prompts
    prompts: Sequence[Sequence[int]]  # without padding, one for each row of the result
    vocab_size: int
    tokenizer: Any = None  # the user's, where there is one
    auto_length: bool = False  # max_new_tokens is "auto", and the config's stands in for it


def refuse_beside(keyword: str, hook: Any, name: str, value: Any) -> NoReturn:
    """ValueError, because `hook` stands for the option `name`, which is given as well."""
    raise ValueError(
        f"{keyword} holds a {type(hook).__name__}, and {name}={value!r} is given beside it; give one of them."
    )


def stock_name(hook: Any, module: str) -> str | None:
    """The name of a class of `module` that `hook` is an instance of; None for subclasses and all others."""
    kind = type(hook)
    genuine = getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    return kind.__name__ if genuine and kind.__module__ == module else None


def ids_in(ids: Any) -> list[int]:
    """What names token ids, an int, a list, a tensor or None, as a list."""
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return [] if values is None else [values] if isinstance(values, int) else list(values)


class StockHook(Hook):
    """A stock processor or criterion, shown its rows as `generate` of Hugging Face shows them.

    All rows of a call have the same number of new tokens there. Here they may differ, so those of one number are shown
    at a time, and no row is padded for the sake of another: what it gives for a row does not depend on the others.
    """

    def __init__(
        self,
        call: Any,
        around: Surroundings,
        for_rows: Callable[[Any, list[int]], Any] | None = None,
        without_padding: bool = False,
    ) -> None:
        super().__init__(call)
        self._prompt_lengths, self._width = [len(prompt) for prompt in around.prompts], around.width
        self._for_rows, self._without_padding = for_rows, without_padding

    def __call__(self, step: Step) -> Any:
        rows = step.rows.tolist()
        columns = [self._columns(row, length) for row, length in zip(rows, step.lengths, strict=True)]
        widths = sorted(set(columns))
        if len(widths) == 1:
            return self._answer(step._replace(input_ids=step.input_ids[:, -widths[0] :]), rows)
        parts = []
        for width in widths:
            places = [i for i, own in enumerate(columns) if own == width]
            index = torch.tensor(places, device=step.scores.device)
            part = Step(
                step.input_ids[index, -width:], step.scores[index], step.rows[index], [step.lengths[i] for i in places]
            )
            answer = self._answer(part, [rows[i] for i in places])
            parts.append((index, answer if isinstance(answer, Tensor) else torch.full((len(places),), bool(answer))))
        joined = torch.empty((len(rows), *parts[0][1].shape[1:]), dtype=parts[0][1].dtype, device=step.scores.device)
        for index, answer in parts:
            joined[index] = answer.to(joined.device)
        return joined

    def _columns(self, row: int, length: int) -> int:
        return length if self._without_padding else length - self._prompt_lengths[row] + self._width

    def _answer(self, step: Step, rows: list[int]) -> Any:
        call = self._for_rows(self.call, rows) if self._for_rows else self.call
        return call(step.input_ids, step.scores)
