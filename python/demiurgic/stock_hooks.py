"""Hugging Face's stock logits processors and stopping criteria, and lm-eval's, as options of ours.

transformers and lm-eval are never imported: an object of theirs tells by its class. A processor stands for the option
of its name. Where the order of the list agrees with the numbered order of sampling it becomes that option; else it is
called like a hook of the user's, at step 6, and the option is off.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demiurgic import _C
from demiurgic.hooks import Hook, Hooks, Step

_PROCESSORS = "transformers.generation.logits_process"
_CRITERIA = "transformers.generation.stopping_criteria"
_INFINITY = float("inf")


class Surroundings(NamedTuple):
    """What the meaning of a stock processor depends on."""

    config: _C.GenerationConfig  # eos_token_id is resolved
    given: Collection[str]  # options that the user gave
    width: int  # T: columns of the prompts
    prompt_lengths: Sequence[int]  # of each row of the result, padding not counted
    vocab_size: int


class Taken(NamedTuple):
    """What became of the user's processors and criteria."""

    options: dict[str, Any]  # of GenerationConfig
    hooks: Hooks | None  # those that are called
    seconds: float | None  # after which the call ends


def take_over(processors: Sequence[Any], criteria: Sequence[Any], around: Surroundings) -> Taken:
    """Which of them become options, and which are called.

    Raises:
        ValueError: one that says something else than an option given beside it, or cannot be called with the live rows.
    """
    options, seconds, asked = _criteria_as_options(criteria, around)
    around = around._replace(config=around.config.replace(**options))
    more, called = _processors_as_options(processors, around)
    options |= more
    hooks = Hooks([_processor_hook(p, around) for p in called], [_criterion_hook(c, around) for c in asked])
    return Taken(options, hooks if called or asked else None, seconds)


def stock_name(hook: Any, module: str) -> str | None:
    """The name of a class of `module` that `hook` is an instance of; None for subclasses and all others."""
    kind = type(hook)
    genuine = getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    return kind.__name__ if genuine and kind.__module__ == module else None


# ---- processors ------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How a class of processors is an option."""

    option: str
    # Its step in the order of sampling. Those of 0 only forbid tokens, which may be done before any other edit.
    step: int
    # The options that have exactly its meaning; None: there are none.
    read: Callable[[Any, Surroundings], dict[str, Any] | None]


def _processors_as_options(processors: Sequence[Any], around: Surroundings) -> tuple[dict[str, Any], list[Any]]:
    """Options for the first and last processors that agree with our order; those between them, to be called."""
    kinds = [_KINDS.get(stock_name(processor, _PROCESSORS) or "") for processor in processors]
    options: dict[str, Any] = {}
    for processor, kind in zip(processors, kinds, strict=True):
        if kind is not None:
            _check_conflict(processor, kind, around)
            if kind.option in _OFF:  # where it becomes an option after all, this is replaced
                options[kind.option] = _OFF[kind.option]
    native: dict[str, Any] = {}
    first, step = 0, 0
    while first < len(processors) and (kind := kinds[first]) is not None and kind.step < _HOOKS_STEP:
        values = kind.read(processors[first], around)
        if values is None or (kind.step and kind.step <= step) or not _join(native, values, around):
            break
        first, step = first + 1, max(step, kind.step)
    last, step = len(processors), _LAST_STEP + 1
    while last > first and (kind := kinds[last - 1]) is not None and _HOOKS_STEP < kind.step < step:
        values = kind.read(processors[last - 1], around)
        if values is None or not _join(native, values, around):
            break
        last, step = last - 1, kind.step
    return options | native, list(processors[first:last])


def _join(native: dict[str, Any], values: dict[str, Any], around: Surroundings) -> bool:
    """Adds `values`, unless an option would have to say two things, or what is out of its range."""
    joined = {}
    for name, value in values.items():
        if name == "bad_token_ids":
            value = sorted({*value, *(native.get(name) or around.config.bad_token_ids or [])})
        elif name == "min_new_tokens":
            value = max(value, native.get(name, around.config.min_new_tokens))
        elif name in native:
            return False
        joined[name] = value
    try:
        around.config.replace(**joined)
    except ValueError:
        return False
    native |= joined
    return True


def _check_conflict(processor: Any, kind: _Kind, around: Surroundings) -> None:
    for name in (kind.option, *_BESIDE.get(kind.option, ())):
        value = getattr(around.config, name)
        if name in around.given and name in _OFF and value != _OFF[name]:
            raise ValueError(
                f"logits_processor holds a {type(processor).__name__}, and {name}={value} is given beside it; give one "
                "of them."
            )


_HOOKS_STEP, _LAST_STEP = 6, 10
# Options that a processor stands for, with what switches them off. Tokens forbidden twice are no conflict.
_OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": None,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "logit_bias": None,
    "min_length": 0,
    "min_new_tokens": 0,
}
_BESIDE = {"top_p": ("typical_p",), "typical_p": ("top_p",)}  # typical_p stands in for top_p


def _temperature(processor: Any, _: Surroundings) -> dict[str, Any] | None:
    return {"temperature": processor.temperature}


def _repetition_penalty(processor: Any, around: Surroundings) -> dict[str, Any] | None:
    ignored = getattr(processor, "prompt_ignore_length", None)
    padding = [around.width - length for length in around.prompt_lengths]
    if ignored is not None and not (isinstance(ignored, Tensor) and ignored.tolist() == padding):
        return None  # to leave out the prompt from this penalty alone is no option
    return {"repetition_penalty": processor.penalty}


def _filter_by(attribute: str, option: str) -> Callable[[Any, Surroundings], dict[str, Any] | None]:
    def read(processor: Any, _: Surroundings) -> dict[str, Any] | None:
        plain = processor.filter_value == -_INFINITY and (option == "top_k" or processor.min_tokens_to_keep == 1)
        return {option: getattr(processor, attribute)} if plain else None

    return read


def _no_repeat_ngram(processor: Any, _: Surroundings) -> dict[str, Any] | None:
    return {"no_repeat_ngram_size": processor.ngram_size}


def _sequence_bias(processor: Any, _: Surroundings) -> dict[str, Any] | None:
    single = {tokens[0]: bias for tokens, bias in processor.sequence_bias.items() if len(tokens) == 1}
    return {"logit_bias": single} if len(single) == len(processor.sequence_bias) else None


def _bad_words(processor: Any, _: Surroundings) -> dict[str, Any] | None:
    words = list(processor.sequence_bias)
    return {"bad_token_ids": [word[0] for word in words]} if all(len(word) == 1 for word in words) else None


def _suppressed(processor: Any, around: Surroundings) -> dict[str, Any] | None:
    # Ids outside the vocabulary mean nothing there.
    return {"bad_token_ids": [i for i in processor.suppress_tokens.tolist() if 0 <= i < around.vocab_size]}


def _min_length(processor: Any, around: Surroundings) -> dict[str, Any] | None:
    return _min_new_tokens(processor, processor.min_length - around.width, around)


def _min_new(processor: Any, around: Surroundings) -> dict[str, Any] | None:
    return _min_new_tokens(processor, processor.min_new_tokens + processor.prompt_length_to_skip - around.width, around)


def _min_new_tokens(processor: Any, count: int, around: Surroundings) -> dict[str, Any] | None:
    """Theirs counts columns, padding too, and bans the EOS ids that it names; ours bans all EOS and stop ids."""
    config = around.config
    ends = set(ids_in(config.eos_token_id))
    named = {i for i in ids_in(processor.eos_token_id) if i < around.vocab_size}
    if named != ends or config.stop_token_ids:
        return None
    most = config.max_new_tokens if config.max_length is None and config.max_new_tokens is not None else count
    return {"min_new_tokens": max(0, min(count, most))}


_KINDS = {
    "SequenceBiasLogitsProcessor": _Kind("logit_bias", 1, _sequence_bias),
    "RepetitionPenaltyLogitsProcessor": _Kind("repetition_penalty", 2, _repetition_penalty),
    "NoBadWordsLogitsProcessor": _Kind("bad_token_ids", 0, _bad_words),
    "SuppressTokensLogitsProcessor": _Kind("bad_token_ids", 0, _suppressed),
    "NoRepeatNGramLogitsProcessor": _Kind("no_repeat_ngram_size", 0, _no_repeat_ngram),
    "MinLengthLogitsProcessor": _Kind("min_length", 0, _min_length),
    "MinNewTokensLengthLogitsProcessor": _Kind("min_new_tokens", 0, _min_new),
    "TemperatureLogitsWarper": _Kind("temperature", 7, _temperature),
    "TopKLogitsWarper": _Kind("top_k", 8, _filter_by("top_k", "top_k")),
    "TopPLogitsWarper": _Kind("top_p", 9, _filter_by("top_p", "top_p")),
    "TypicalLogitsWarper": _Kind("typical_p", 9, _filter_by("mass", "typical_p")),
    "MinPLogitsWarper": _Kind("min_p", 10, _filter_by("min_p", "min_p")),
}


def ids_in(ids: Any) -> list[int]:
    """What names token ids, an int, a list, a tensor or None, as a list."""
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return [] if values is None else [values] if isinstance(values, int) else list(values)


# ---- criteria --------------------------------------------------------------------------------------------------------


def _criteria_as_options(
    criteria: Sequence[Any], around: Surroundings
) -> tuple[dict[str, Any], float | None, list[Any]]:
    """Options, seconds, and the criteria that are asked. Any of them ends a row, so their order does not matter."""
    options: dict[str, Any] = {}
    seconds: float | None = None
    asked = []
    for criterion in criteria:
        name = stock_name(criterion, _CRITERIA)
        if name == "EosTokenCriteria":
            continue  # they are in the config, by named_eos
        if name == "MaxLengthCriteria":
            _refuse_beside(criterion, ("max_new_tokens", "max_length"), around.config, around.given)
            most = max(1, criterion.max_length - around.width)  # it is asked after a token, and counts columns
            options["max_new_tokens"] = min(most, options.get("max_new_tokens", most))
        elif name == "MaxTimeCriteria":
            left = criterion.initial_timestamp + criterion.max_time - time.time()
            seconds = left if seconds is None else min(left, seconds)
        else:
            asked.append(criterion)
    return options, seconds, asked


def named_eos(criteria: Sequence[Any], config: _C.GenerationConfig, given: Collection[str]) -> _C.GenerationConfig:
    """`config` with the ids of EosTokenCriteria for eos_token_id, where there are some.

    Raises:
        ValueError: eos_token_id is given as well.
    """
    stock = [criterion for criterion in criteria if stock_name(criterion, _CRITERIA) == "EosTokenCriteria"]
    if not stock:
        return config
    _refuse_beside(stock[0], ("eos_token_id",), config, given)
    return config.replace(eos_token_id=sorted({i for criterion in stock for i in ids_in(criterion.eos_token_id)}))


def _refuse_beside(criterion: Any, names: Sequence[str], config: _C.GenerationConfig, given: Collection[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if name in given and value is not None:
            raise ValueError(
                f"stopping_criteria holds a {type(criterion).__name__}, and {name}={value} is given beside it; give "
                "one of them."
            )


# ---- stock ones that are called --------------------------------------------------------------------------------------

# Keep something for each place in the batch, which changes when a row ends.
_BOUND_TO_BATCH = {
    "AlternatingCodebooksLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
}
# Look at the tokens wherever they stand, and would count padding as tokens.
_READ_TOKENS = {
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "StopStringCriteria",
}


def _processor_hook(processor: Any, around: Surroundings) -> Hook:
    name = stock_name(processor, _PROCESSORS)
    if name is None:
        return Hook(processor)
    if name in _BOUND_TO_BATCH and len(around.prompt_lengths) > 1:
        raise ValueError(
            f"logits_processor holds a {name}, which keeps something for each row of the batch by its place, and rows "
            "leave the batch when they end; generate with one row at a time."
        )
    if getattr(processor, "_num_beams", 1) != 1:
        raise ValueError(f"logits_processor holds a {name} for beams; there are none here, give it num_beams=1.")
    ignored = getattr(processor, "prompt_ignore_length", None)
    if isinstance(ignored, Tensor) and len(ignored) != len(around.prompt_lengths):
        raise ValueError(
            f"logits_processor holds a {name} whose prompt_ignore_length has {len(ignored)} entries, but there are "
            f"{len(around.prompt_lengths)} rows; give one entry a row of the result."
        )
    reads_tokens = name in _READ_TOKENS and ignored is None
    return StockHook(processor, around, for_rows=_FOR_ROWS.get(name), without_padding=reads_tokens)


def _criterion_hook(criterion: Any, around: Surroundings) -> Hook:
    name = stock_name(criterion, _CRITERIA)
    if type(criterion).__module__.startswith("lm_eval.") and type(criterion).__name__ == "MultiTokenEOSCriteria":
        return LmEvalStop(criterion, around)
    if name is None:
        return Hook(criterion)
    return StockHook(criterion, around, without_padding=name in _READ_TOKENS)


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
        self._prompt_lengths, self._width = around.prompt_lengths, around.width
        self._for_rows, self._without_padding = for_rows, without_padding

    def __call__(self, step: Step) -> Any:
        rows = step.rows.tolist()
        columns = [self._columns(row, length) for row, length in zip(rows, step.lengths, strict=True)]
        parts = []
        for width in sorted(set(columns)):
            places = [i for i, own in enumerate(columns) if own == width]
            index = torch.tensor(places, device=step.scores.device)
            part = Step(
                step.input_ids[index, -width:], step.scores[index], step.rows[index], [step.lengths[i] for i in places]
            )
            parts.append((index, self._answer(part, [rows[i] for i in places])))
        if len(parts) == 1:
            return parts[0][1]
        joined = torch.empty((len(rows), *parts[0][1].shape[1:]), dtype=parts[0][1].dtype, device=step.scores.device)
        for index, answer in parts:
            joined[index] = answer.to(joined.device)
        return joined

    def _columns(self, row: int, length: int) -> int:
        return length if self._without_padding else length - self._prompt_lengths[row] + self._width

    def _answer(self, step: Step, rows: list[int]) -> Any:
        call = self._for_rows(self.call, rows) if self._for_rows else self.call
        return call(step.input_ids, step.scores)


def _penalty_for_rows(processor: Any, rows: list[int]) -> Any:
    """The processor with the prompt lengths of these rows, where it has one for each."""
    ignored = processor.prompt_ignore_length
    if not isinstance(ignored, Tensor):
        return processor
    own = copy.copy(processor)
    own.prompt_ignore_length = ignored[rows]
    return own


def _constraint_for_rows(processor: Any, rows: list[int]) -> Any:
    """The processor whose function is told the number of the row in the result, not its place among these."""
    own = copy.copy(processor)
    function = processor._prefix_allowed_tokens_fn
    own._prefix_allowed_tokens_fn = lambda place, tokens: function(rows[place], tokens)
    return own


_FOR_ROWS: dict[str, Callable[[Any, list[int]], Any]] = {
    "PrefixConstrainedLogitsProcessor": _constraint_for_rows,
    "RepetitionPenaltyLogitsProcessor": _penalty_for_rows,
}


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
