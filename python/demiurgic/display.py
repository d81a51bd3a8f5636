"""The text of a stream as it comes: live in a notebook, printed elsewhere."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from demiurgic.output import GenerationOutput
from demiurgic.printable import printable
from demiurgic.progress import in_notebook
from demiurgic.streaming import Stream, StreamEvent

_INTERVAL = 0.05  # seconds between two pictures: a browser shows no more, and each costs a message
_TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .6em 0"
_FAINT = "opacity: .6"


def show(stream: Stream, prompt: str = "") -> GenerationOutput:
    """Shows the texts of a stream as they come, until it ends.

    In a notebook each row is a paragraph that grows, with what ended it below. Elsewhere a single row is printed piece
    by piece on standard output, several rows each under a header when it has ended.

    Args:
        stream: from `demiurgic.stream(..., tokenizer=tokenizer)`.
        prompt: shown before each row, faint in a notebook.

    Returns:
        What generate would have returned, with `return_dict_in_generate=True`; also after Ctrl-C, with the rows that it
        ended as cancelled.

    Raises:
        TypeError: something that is not a stream.
        ValueError: the stream has no tokenizer, so there is no text.
        GenerationError: a row ended in an error; the others are shown to their end.
    """
    if not isinstance(stream, Stream):
        raise TypeError(
            f"stream is of type {type(stream).__name__}, but must be a Stream: show what demiurgic.stream or "
            "model.stream returned."
        )
    if not stream.has_text:
        raise ValueError("The stream has no text to show: pass tokenizer= to stream.")
    picture = _Notebook(stream.num_rows, prompt) if in_notebook() else _Printed(stream.num_rows, prompt)
    with stream:
        try:
            for event in stream:
                picture.take(event)
        except KeyboardInterrupt:
            pass  # the result says which rows it ended
        finally:
            picture.end()
    return stream.result()


class _Printed:
    """Text on standard output."""

    def __init__(self, num_rows: int, prompt: str) -> None:
        self._texts = [prompt] * num_rows
        if num_rows == 1:
            self._print(prompt)

    def take(self, event: StreamEvent) -> None:
        self._texts[event.row] += event.text or ""
        if len(self._texts) == 1:
            self._print(event.text or "")
        elif event.finish_reason:
            self._print(f"# {event.row + 1} of {len(self._texts)}, ended by {event.finish_reason}\n")
            self._print(self._texts[event.row].removesuffix("\n") + "\n")

    def end(self) -> None:
        if len(self._texts) == 1 and not self._texts[0].endswith("\n"):
            self._print("\n")

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


class _Notebook:
    """Paragraphs that grow, in the output of a notebook's cell."""

    def __init__(self, num_rows: int, prompt: str) -> None:
        from IPython.display import display  # here: a notebook has it, others need not

        self._prompt = prompt
        self._texts = [""] * num_rows
        self._lengths = [0] * num_rows
        self._ends: list[str | None] = [None] * num_rows
        self._seconds = 0.0
        self._next = 0.0
        self._handle: Any = display(self._picture(), display_id=True)  # type: ignore[no-untyped-call]

    def take(self, event: StreamEvent) -> None:
        self._texts[event.row] += event.text or ""
        self._lengths[event.row] += len(event.token_ids)
        self._ends[event.row] = event.finish_reason
        self._seconds = event.timings["prefill"] + event.timings["decode"]
        if time.perf_counter() >= self._next:
            self._handle.update(self._picture())
            self._next = time.perf_counter() + _INTERVAL

    def end(self) -> None:
        self._handle.update(self._picture())

    def _picture(self) -> Any:
        from IPython.display import HTML

        return HTML("".join(map(self._paragraph, range(len(self._texts)))))  # type: ignore[no-untyped-call]

    def _paragraph(self, row: int) -> str:
        end, length = self._ends[row], self._lengths[row]
        speed = f", {sum(self._lengths) / self._seconds:.0f} tokens/s in all rows" if self._seconds else ""
        facts = f"{length} tokens{speed}" + (f", ended by {end}" if end else "")
        return (
            f'<div><pre style="{_TEXT}"><span style="{_FAINT}">{html.escape(printable(self._prompt))}</span>'
            f"{html.escape(printable(self._texts[row]))}</pre>"
            f'<small style="{_FAINT}">{html.escape(facts)}</small></div>'
        )
