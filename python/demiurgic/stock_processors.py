"""Hugging Face's stock logits processors as options of ours.

A processor stands for the option of its name. Where the order of the list agrees with the numbered order of sampling it
becomes that option; else it is called like a hook of the user's, at step 6, and the option is off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from demiurgic.hooks import Hook
from demiurgic.stock_classes import PROCESSORS, StockHook, Surroundings, ids_in, refuse_beside, stock_name

_INFINITY = float("inf")


class _Kind(NamedTuple):
    """How a class of processors is an option."""

    option: str
    # Its step in the order of sampling. Those of 0 only forbid tokens, which may be done before any other edit.
    step: int
    # The options that have exactly its meaning; None: there are none.
    read: Callable[[Any, Surroundings], dict[str, Any] | None]


def processors_as_options(processors: Sequence[Any], around: Surroundings) -> tuple[dict[str, Any], list[Any]]:
    """Options for the first and last processors that agree with our order; those between them, to be called."""
    kinds = [_KINDS.get(stock_name(processor, PROCESSORS) or "") for processor in processors]
    options: dict[str, Any] = {}
    for processor, kind in zip(processors, kinds, strict=True):
        if kind is not None:
            _check_conflict(processor, kind, around)
            # Where it becomes an option after all, this is replaced.
            options |= {name: _OFF[name] for name in (kind.option, *_STANDS_IN.get(kind.option, ())) if name in _OFF}
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
        if values is None or _acts_on_greedy(kind, around) or not _join(native, values, around):
            break
        last, step = last - 1, kind.step
    return options | native, list(processors[first:last])


def _acts_on_greedy(kind: _Kind, around: Surroundings) -> bool:
    """Whether it may drop the most likely token of a greedy call, for which our steps from 7 on are not computed."""
    greedy = not around.config.do_sample or around.config.temperature == 0
    return greedy and kind.option == "typical_p"


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
    beside = {"top_p": ("typical_p",)} | _STANDS_IN
    for name in (kind.option, *beside.get(kind.option, ())):
        if name in around.given and name in _OFF and getattr(around.config, name) != _OFF[name]:
            refuse_beside("logits_processor", processor, name, getattr(around.config, name))


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
_STANDS_IN = {"typical_p": ("top_p",)}  # which means nothing beside it


def _temperature(processor: Any, _: Surroundings) -> dict[str, Any] | None:
    return {"temperature": processor.temperature}


def _repetition_penalty(processor: Any, around: Surroundings) -> dict[str, Any] | None:
    ignored = getattr(processor, "prompt_ignore_length", None)
    padding = [around.width - len(prompt) for prompt in around.prompts]
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
    """Theirs counts columns, padding too, and bans the EOS ids that it names; ours holds all ends back."""
    config = around.config
    ends = set(ids_in(config.eos_token_id))
    others = config.stop_token_ids or config.stop or config.stop_at or config.stop_on_repetition
    named = {i for i in ids_in(processor.eos_token_id) if i < around.vocab_size}
    if named != ends or others:
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


# ---- those that are called -------------------------------------------------------------------------------------------

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
}


def processor_hook(processor: Any, around: Surroundings) -> Hook:
    name = stock_name(processor, PROCESSORS)
    if name is None:
        return Hook(processor)
    if name in _BOUND_TO_BATCH and len(around.prompts) > 1:
        raise ValueError(
            f"logits_processor holds a {name}, which keeps something for each row of the batch by its place, and rows "
            "leave the batch when they end; generate with one row at a time."
        )
    if getattr(processor, "_num_beams", 1) != 1:
        raise ValueError(f"logits_processor holds a {name} for beams; there are none here, give it num_beams=1.")
    ignored = getattr(processor, "prompt_ignore_length", None)
    if isinstance(ignored, Tensor) and len(ignored) != len(around.prompts):
        raise ValueError(
            f"logits_processor holds a {name} whose prompt_ignore_length has {len(ignored)} entries, but there are "
            f"{len(around.prompts)} rows; give one entry a row of the result."
        )
    reads_tokens = name in _READ_TOKENS and ignored is None
    return StockHook(processor, around, for_rows=_FOR_ROWS.get(name), without_padding=reads_tokens)


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
