"""Hugging Face's stock stopping criteria, and lm-eval's, as options of ours.

Any criterion ends a row, so their order does not matter; what is no option is called.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demiurgic import _C
from demiurgic.hooks import Hook, Step
from demiurgic.stock_classes import CRITERIA, StockHook, Surroundings, ids_in, refuse_beside, stock_name
from demiurgic.token_bytes import token_bytes


class Ends(NamedTuple):
    """What became of the user's criteria."""

    options: dict[str, Any]  # of GenerationConfig
    seconds: float | None  # after which the call ends
    token_bytes: _C.TokenBytes | None  # that the options need, where they look at text
    called: list[Any]


def named_eos(
    criteria: Sequence[Any], config: _C.GenerationConfig, given: Collection[str], model_config: Any
) -> _C.GenerationConfig:
    """`config` with the ids of EosTokenCriteria for eos_token_id, where there are some.

    Raises:
        ValueError: eos_token_id is given as well.
        IndexError: an id of theirs is outside the vocabulary.
    """
    stock = [criterion for criterion in criteria if stock_name(criterion, CRITERIA) == "EosTokenCriteria"]
    if not stock:
        return config
    if "eos_token_id" in given and config.eos_token_id is not None:
        refuse_beside("stopping_criteria", stock[0], "eos_token_id", config.eos_token_id)
    ids = sorted({i for criterion in stock for i in ids_in(criterion.eos_token_id)})
    for token in ids:
        if not 0 <= token < model_config.vocab_size:
            raise IndexError(
                f"stopping_criteria holds a EosTokenCriteria with the id {token}, but the vocabulary has the ids 0 to "
                f"{model_config.vocab_size - 1}."
            )
    return config.replace(eos_token_id=ids)


def criteria_as_options(criteria: Sequence[Any], around: Surroundings) -> Ends:
    """Options for the stock criteria whose meaning they have. EosTokenCriteria are in the config, by named_eos.

    Raises:
        ValueError: one stands for an option that is given as well.
    """
    by_kind: dict[str, list[Any]] = {}
    for criterion in criteria:
        by_kind.setdefault(_kind(criterion), []).append(criterion)
    limits = by_kind.get("MaxLengthCriteria", [])
    options = _max_new_tokens(limits, around) if limits else {}
    clocks = by_kind.get("MaxTimeCriteria", [])
    left = [clock.initial_timestamp + clock.max_time - time.time() for clock in clocks]
    called = by_kind.get("", [])
    strings = by_kind.get("StopStringCriteria", []) + by_kind.get("MultiTokenEOSCriteria", [])
    stops = _stops(strings, around) if strings else None
    if stops is None:
        return Ends(options, min(left, default=None), None, called + strings)
    return Ends(options | {"stop": stops.strings, "include_stop": True}, min(left, default=None), stops.table, called)


def _kind(criterion: Any) -> str:
    """The name of a stock class that may become an option; "" for all others."""
    if type(criterion).__module__.startswith("lm_eval."):
        name = stock_name(criterion, type(criterion).__module__)
        return "MultiTokenEOSCriteria" if name == "MultiTokenEOSCriteria" else ""
    name = stock_name(criterion, CRITERIA)
    known = ("EosTokenCriteria", "MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria")
    return name if name in known else ""


def _max_new_tokens(limits: list[Any], around: Surroundings) -> dict[str, Any]:
    """They are asked after a token, and count columns."""
    for name in ("max_new_tokens", "max_length"):
        value = "auto" if name == "max_new_tokens" and around.auto_length else getattr(around.config, name)
        if name in around.given and value is not None:
            refuse_beside("stopping_criteria", limits[0], name, value)
    return {"max_new_tokens": max(1, min(limit.max_length for limit in limits) - around.width)}


# ---- stop strings ----------------------------------------------------------------------------------------------------


class _Stops(NamedTuple):
    strings: list[str]
    table: _C.TokenBytes


def _stops(criteria: list[Any], around: Surroundings) -> _Stops | None:
    """The stop strings of all of them as the option `stop`; None where it would mean something else.

    Theirs are looked for in the prompt as well, as long as the last token is part of the match, and in the names of
    special tokens; `stop` looks at the generated text, and is held back by min_new_tokens.
    """
    if "stop" in around.given and around.config.stop:
        refuse_beside("stopping_criteria", criteria[0], "stop", around.config.stop)
    config = around.config
    if config.stop_at or config.min_new_tokens or config.min_length or "include_stop" in around.given:
        return None
    table = _one_table(criteria, around)
    if table is None:
        return None
    for criterion in criteria:
        if _kind(criterion) == "StopStringCriteria":
            plain = not _begins_in_a_prompt(criterion.stop_strings, around, table) and _ignores_special(
                criterion, table
            )
        else:
            plain = criterion.initial_decoder_input_length == around.width
        if not plain:
            return None
    strings = sorted({string for criterion in criteria for string in _strings(criterion)})
    # Where a string is part of another, it ends the row first. Of what is left, what begins first ends first.
    return _Stops([s for s in strings if not any(other in s for other in strings if other != s)], table)


def _strings(criterion: Any) -> Sequence[str]:
    return criterion.stop_strings if _kind(criterion) == "StopStringCriteria" else [criterion.sequence]


def _one_table(criteria: list[Any], around: Surroundings) -> _C.TokenBytes | None:
    """The bytes of the tokens by the user's tokenizer, else by that of lm-eval's criteria."""
    theirs = [c.tokenizer for c in criteria if _kind(c) == "MultiTokenEOSCriteria"]
    if around.tokenizer is not None:
        return token_bytes(around.tokenizer)
    if not theirs or any(tokenizer is not theirs[0] for tokenizer in theirs):
        return None
    try:
        return token_bytes(theirs[0])
    except (TypeError, ValueError):  # of a kind whose tokens do not say what text they make
        return None


def _begins_in_a_prompt(strings: Sequence[str], around: Surroundings, table: _C.TokenBytes) -> bool:
    """Whether a prompt ends in the beginning of a stop string, or has no text, so that a blank may go."""
    beginnings = tuple(stop.encode()[:n] for stop in strings for n in range(1, len(stop.encode())))
    longest = max(map(len, beginnings), default=1)
    for prompt in around.prompts:
        tail = b""
        for token in reversed(prompt):
            tail = table.of(token) + tail
            if len(tail) >= longest:
                break
        if not tail or (beginnings and tail.endswith(beginnings)):
            return True
    return False


def _ignores_special(criterion: Any, table: _C.TokenBytes) -> bool:
    """Whether all tokens that can be part of a match, by the criterion's own table, have text for us too."""
    places = criterion.embedding_vec[:, :-1]  # [tokens + 1, places of a token in the strings]; -1: none
    ids = (places != -1).any(dim=1).nonzero().flatten().tolist()
    return all(table.of(i) for i in ids)


# ---- those that are called -------------------------------------------------------------------------------------------


def criterion_hook(criterion: Any, around: Surroundings) -> Hook:
    if _kind(criterion) == "MultiTokenEOSCriteria":
        return LmEvalStop(criterion, around)
    name = stock_name(criterion, CRITERIA)
    if name is None:
        return Hook(criterion)
    return StockHook(criterion, around, without_padding=name == "StopStringCriteria")


class LmEvalStop(StockHook):
    """lm-eval's MultiTokenEOSCriteria, row by row.

    There the call goes on until each row has had the sequence, and lm-eval cuts what comes after it. Here each row ends
    with its own.
    """

    def _answer(self, step: Step, rows: list[int]) -> Tensor:
        own: Any = copy.copy(self.call)
        own.done_tracker = [False] * len(rows)
        own(step.input_ids, step.scores)
        return torch.tensor(own.done_tracker)
