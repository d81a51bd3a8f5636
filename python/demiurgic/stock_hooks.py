"""What becomes of the logits processors and stopping criteria that a user gives: options of ours, and hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from demiurgic import _C
from demiurgic.hooks import Hooks
from demiurgic.stock_classes import Surroundings
from demiurgic.stock_criteria import criteria_as_options, criterion_hook
from demiurgic.stock_processors import processor_hook, processors_as_options


class Taken(NamedTuple):
    """What became of them."""

    options: dict[str, Any]  # of GenerationConfig
    hooks: Hooks | None  # those that are called
    seconds: float | None  # after which the call ends
    token_bytes: _C.TokenBytes | None  # that the options need


def take_over(processors: Sequence[Any], criteria: Sequence[Any], around: Surroundings) -> Taken:
    """Hugging Face's own as options where these have their meaning; all others are called.

    Raises:
        ValueError: one says something else than an option given beside it, or cannot be called with the live rows.
    """
    ends = criteria_as_options(criteria, around)
    around = around._replace(config=around.config.replace(**ends.options))
    options, called = processors_as_options(processors, around)
    hooks = Hooks([processor_hook(p, around) for p in called], [criterion_hook(c, around) for c in ends.called])
    return Taken(ends.options | options, hooks if called or ends.called else None, ends.seconds, ends.token_bytes)
