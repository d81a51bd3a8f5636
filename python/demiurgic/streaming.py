"""A generation as it comes: an iterator over the new tokens and the new text of each row."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn

from demiurgic import _C
from demiurgic.auto_length import take_auto_length
from demiurgic.engine import DEFAULT_MAX_RUNNING, EngineSource, Generation, given_names, merged
from demiurgic.output import GenerationOutput
from demiurgic.text_stream import TextStream, decoder_of
from demiurgic.token_bytes import token_bytes


@dataclass(frozen=True)
class StreamEvent:
    """What a row has got since its last event.

    Attributes:
        row: index of the row, as in the result of generate.
        text: what has become final of the row's text, whole characters only; it may be empty. None without a tokenizer.
        token_ids: the new ids. Joined over the events of a row they are its completion. Ids and text that may turn out
            to belong to a stop string, or to a cycle that `trim_repetition` cuts, wait until that is known.
        logprobs: log-probabilities of token_ids by the model's raw logits.
        processed_logprobs: the same by what the options left of the distribution.
        finish_reason: eos | stop | length | repetition | error | cancelled in the row's last event, else None.
        stop_reason: the stop string, the value of stop_at or the stop id, where the reason is stop.
        error: the message where the reason is error, else None.
        timings: prefill and decode in seconds, so far and of all rows.
        top_logprobs: one list a token with the option `top_logprobs=k`, as in GenerationOutput but without padding:
            shorter than k where fewer tokens have a chance. None where it is not asked for.
        top_logprob_ids: their ids.
        entropies: one number a token with `entropy=True`, else None.
        processed_top_logprobs, processed_top_logprob_ids, processed_entropies: with the mode "both", else None.
    """

    row: int
    text: str | None
    token_ids: list[int]
    logprobs: list[float]
    processed_logprobs: list[float]
    finish_reason: str | None
    stop_reason: str | int | None
    error: str | None
    timings: dict[str, float]
    top_logprobs: list[list[float]] | None = None
    top_logprob_ids: list[list[int]] | None = None
    entropies: list[float] | None = None
    processed_top_logprobs: list[list[float]] | None = None
    processed_top_logprob_ids: list[list[int]] | None = None
    processed_entropies: list[float] | None = None


class Stream(Iterator[StreamEvent]):
    """The events of a generation, computed as they are asked for; `with` it, or closed, or gone, it ends.

    `tokenizer` is for a generation that has none, because the kind of the tokenizer is not known to the core: its
    `decode` makes the text then.

    The rows that were under way then end as cancelled, at once or, where another thread is in the middle of a step, at
    the end of that step, and their cache is free again.
    """

    def __init__(self, generation: Generation, tokenizer: Any = None) -> None:
        self.num_rows = generation.num_rows
        self.has_text = generation.has_text or tokenizer is not None
        self._generation = generation
        self._rows = [_Row(generation, row, tokenizer) for row in range(generation.num_rows)]
        self._ready: deque[StreamEvent] = deque()
        self._open = True
        self._failed = False

    def __next__(self) -> StreamEvent:
        """The next event.

        Raises:
            GenerationError: after the last event, where a row ended in an error; its `result` has all rows.
            KeyboardInterrupt: Ctrl-C; the stream is closed then.
        """
        while not self._ready:
            if not self._open:
                raise StopIteration
            self._advance()
        return self._ready.popleft()

    def _advance(self) -> None:
        """A step, and the events of it; at the end the error of a row."""
        if not self._rows:
            self.close()
            if self._failed:
                self.result().raise_errors()
            return
        try:
            self._generation.advance()
            timings = self._generation.timings()
            events = [row.news(timings) for row in self._rows]
        except BaseException:
            self.close()
            raise
        self._ready.extend(event for event in events if event is not None)
        self._failed |= any(event.error for event in self._ready)
        self._rows = [row for row in self._rows if not row.ended]

    def close(self) -> None:
        """Ends the rows that are under way. There are no events after it."""
        self._open = False
        self._ready.clear()
        self._generation.cancel()

    def result(self) -> GenerationOutput:
        """All that has been generated, once the stream has come to its end or is closed.

        Raises:
            RuntimeError: the stream is still under way.
        """
        if self._open and self._rows:
            raise RuntimeError("The stream is still under way: iterate to its end or close it, then take its result.")
        return self._generation.result()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Row:
    """What has been given out of a row."""

    def __init__(self, generation: Generation, row: int, tokenizer: Any) -> None:
        self._generation = generation
        self._row = row
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace") if generation.has_text else None
        self._decoded = None if generation.has_text or tokenizer is None else TextStream(decoder_of(tokenizer))
        self._given = self._given_bytes = 0
        self.ended = False

    def news(self, timings: dict[str, float]) -> StreamEvent | None:
        """What is new since the last call, None if nothing is."""
        reason = self._generation.finish_reason(self._row)  # before the ids: what has ended gets no more of them
        settled, _ = self._generation.settled(self._row)
        start, ids = self._given, self._generation.tokens(self._row, self._given)[: max(settled - self._given, 0)]
        self.ended = reason != "none"
        text = self._new_text(ids)
        if not ids and not text and not self.ended:
            return None
        self._given += len(ids)
        return StreamEvent(
            row=self._row,
            text=text,
            token_ids=ids,
            finish_reason=reason if self.ended else None,
            stop_reason=self._generation.stop_reason(self._row) if self.ended else None,
            error=self._generation.error(self._row) if self.ended else None,
            timings=timings,
            **self._generation.numbers(self._row, start, len(ids)),
        )

    def _new_text(self, ids: list[int]) -> str | None:
        if self._bytes is not None:
            new = self._generation.text(self._row, self._given_bytes)
            self._given_bytes += len(new)
            return self._bytes.decode(new, final=self.ended)
        if self._decoded is None:
            return None
        return self._decoded.feed(ids) + (self._decoded.end() if self.ended else "")


def known_or_none(tokenizer: Any) -> Any:
    """The tokenizer if its tokens' bytes are known; None where only its `decode` can be used, TypeError without one."""
    if tokenizer is None:
        return None
    try:
        token_bytes(tokenizer)
    except (TypeError, ValueError):
        decoder_of(tokenizer)
        return None
    return tokenizer


def stream(
    model: nn.Module,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    tokenizer: Any = None,
    generation_config: _C.GenerationConfig | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    max_running: int = DEFAULT_MAX_RUNNING,
    cache_bytes: int | None = None,
    max_step_tokens: int | None = None,
    exact: bool | None = None,
    session: EngineSource | None = None,
    draft_model: nn.Module | None = None,
    **options: Any,
) -> Stream:
    """Continues prompts as generate does, and gives the tokens as they come.

    `for event in stream(model, ids, tokenizer=tokenizer): print(event.text, end="")`. The tokens are those of generate,
    bit for bit. The work is done by whoever iterates, step by step; there is no thread of its own. Breaking out of the
    loop ends the generation as soon as nobody refers to the stream any more, `close()` is called, or `with` is left.

    Args:
        model, input_ids, attention_mask: as in generate. The prompts are not in the events.
        tokenizer: makes `text` of the ids: as in generate, or, where no option looks at the text, anything with
            `decode(ids)`. None: no text.
        generation_config, options, logits_processor, stopping_criteria, max_running, cache_bytes, max_step_tokens,
            exact, session, draft_model: as in generate. What a hook raises leaves the iterator.

    Returns:
        A Stream: an iterator over StreamEvent, at most one a row and step, in the order of the rows within a step.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as generate, at the call and not at the first event.
    """
    auto_length = take_auto_length(options, generation_config)
    config = merged(generation_config, options, "stream")
    looks_at_text = bool(auto_length or config.stop or config.stop_at)
    generation = Generation(
        model,
        input_ids,
        attention_mask,
        config=config,
        given=given_names(generation_config, options),
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        want_logprobs=True,
        max_running=max_running,
        cache_bytes=cache_bytes,
        max_step_tokens=max_step_tokens,
        exact=exact,
        draft_model=draft_model,
        session=session,
        tokenizer=tokenizer if looks_at_text else known_or_none(tokenizer),
        auto_length=auto_length,
    )
    return Stream(generation, tokenizer)
