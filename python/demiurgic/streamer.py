"""Hugging Face's protocol for streams: an object with `put(ids)` and `end()`, as its TextStreamer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

import torch

from demiurgic.prompts import Prompts


class Source(Protocol):
    """What StreamerFeed needs of a generation."""

    prompts: Prompts

    def settled(self, row: int) -> tuple[int, int]: ...
    def tokens(self, row: int, start: int = 0) -> list[int]: ...


def check_streamer(streamer: Any, num_rows: int) -> None:
    """Refuses an object without the protocol, and more rows than one, whose tokens it could not tell apart."""
    if streamer is None:
        return
    if not _has_protocol(streamer):
        raise TypeError(
            f"streamer is {streamer!r}, but must be an object with put(ids) and end(), as TextStreamer of transformers."
        )
    if num_rows > 1:
        raise ValueError(
            f"streamer takes the tokens of one row, but this call has {num_rows}; demiurgic.stream tells rows apart."
        )


@contextmanager
def ended_if_refused(streamer: Any) -> Iterator[None]:
    """Ends `streamer` where the call is refused: who iterates over what it gets must not wait for ever."""
    try:
        yield
    except BaseException:
        if _has_protocol(streamer):
            streamer.end()
        raise


def _has_protocol(streamer: Any) -> bool:
    return not isinstance(streamer, type) and all(callable(getattr(streamer, name, None)) for name in ("put", "end"))


class StreamerFeed:
    """Feeds `streamer`, from `with` on: the prompt int64 [1, T] without padding, then each token [1], all on the CPU.

    Its `end` is called whatever happens, but where it raised itself: who iterates over what it gets must not wait for
    ever.
    """

    def __init__(self, source: Source, streamer: Any) -> None:
        self._source = source
        self._streamer = streamer
        self._given = 0
        self._broken = False

    def __enter__(self) -> StreamerFeed:
        if self._streamer is not None:
            self._put([self._source.prompts.ids])
        return self

    def update(self) -> None:
        """Gives what is new."""
        if self._streamer is None:
            return
        settled, _ = self._source.settled(0)  # the others may turn out to belong to a stop
        new = self._source.tokens(0, self._given)[: max(settled - self._given, 0)]
        self._given += len(new)
        self._put([[token] for token in new])

    def _put(self, pieces: list[Any]) -> None:
        for ids in pieces:
            try:
                self._streamer.put(torch.tensor(ids, dtype=torch.int64, device="cpu"))
            except BaseException:
                self._broken = True
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._streamer is None or self._broken:
            return
        try:
            if kind is None:
                self.update()
        finally:
            if not self._broken:
                self._streamer.end()
