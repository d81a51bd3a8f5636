"""Ids as they come, text as soon as it is final."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Protocol

_REPLACEMENT = "\ufffd"  # what decode gives for bytes that are no character, or not yet
_LONGEST = 32  # pending ids; where so many have no whole character at their end, the bytes are no UTF-8
_UNDECIDED = 3  # of a character of 4 bytes at most 3 are shown as replacements before it is whole


class Decoder(Protocol):
    """What TextStream needs of a tokenizer."""

    def decode(self, ids: list[int]) -> Any: ...


def decoder_of(tokenizer: Any, skip_special_tokens: bool = True) -> Decoder:
    """What decodes ids with `tokenizer`, of ours or of another library: without special tokens, or with them.

    Raises:
        TypeError: it has no method `decode`.
    """
    if not callable(getattr(tokenizer, "decode", None)) or isinstance(tokenizer, bytes | type):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, but must have a method decode(ids), as that of "
            "demiurgic.load has."
        )
    parameters = inspect.signature(tokenizer.decode).parameters
    return _Told(tokenizer, skip_special_tokens) if "skip_special_tokens" in parameters else tokenizer


class _Told:
    """A tokenizer that is told what to do with special tokens."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens

    def decode(self, ids: list[int]) -> Any:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


class TextStream:
    """Turns a growing row of ids into pieces of text that never have to be taken back.

    A character that is split over several tokens is held back until it is whole. All pieces and `end()` together are
    `tokenizer.decode(all ids)`, bytes that are no UTF-8 included, and the work for an id does not grow with the row.
    One exception: byte-fallback tokenizers (Llama 2) read a row of bytes as no text at all if one of them is wrong;
    the characters before it, which are out already, stay.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._decode = tokenizer.decode
        self._context: list[int] = []  # ids whose text is out; a decoder may join words, so it sees the last ones
        self._pending: list[int] = []  # ids after them
        self._given = 0  # characters out, of the text of context and pending

    def feed(self, ids: Iterable[int]) -> str:
        """Takes the next ids; returns the text that has become final, which may be empty."""
        return "".join([self._step(i) for i in ids])

    def end(self) -> str:
        """The rest, with U+FFFD for a character that has remained incomplete. What is fed next is a new text."""
        tail: str = self._decode(self._context + self._pending)[self._given :]
        self._context, self._pending, self._given = [], [], 0
        return tail

    def _step(self, token: int) -> str:
        if not self._decode([token, token]):  # a special token; twice, because a lone space may have no text either
            return ""
        self._pending.append(token)
        text: str = self._decode(self._context + self._pending)
        final = len(text.rstrip(_REPLACEMENT))
        if final < len(text) and len(self._pending) > _LONGEST:
            final = len(text) - _UNDECIDED
        piece = text[self._given : final]
        self._given = max(self._given, final)
        if final == len(text):
            self._context, self._pending = self._pending, []
            self._given = len(self._decode(self._context))
        elif len(self._pending) > _LONGEST:
            # From the right: a first character that is cut in two reads otherwise, the last ones do not.
            self._context, self._pending = [], self._pending[-_LONGEST // 2 :]
            self._given = len(self._decode(self._pending)) - _UNDECIDED
        return piece
