"""A progress bar on a terminal or in a notebook: sequences that have ended, tokens a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

_INTERVAL = 0.1  # seconds between two looks at the rows, which cost a lock each
_FORMAT = "{n_fmt}/{total_fmt} sequences |{bar}| {elapsed}<{remaining}{postfix}"


class Rows(Protocol):
    """What ProgressBar needs of a generation."""

    @property
    def num_rows(self) -> int: ...
    def settled(self, row: int) -> tuple[int, int]: ...
    def finish_reason(self, row: int) -> str: ...


class ProgressBar:
    """Shows how far `rows` are, from `with` on; nothing where `wanted` is false or nobody would see it."""

    def __init__(self, rows: Rows, wanted: bool) -> None:
        self._rows = rows
        self._lengths = [0] * rows.num_rows
        self._under_way = list(range(rows.num_rows))
        self._shown = wanted and rows.num_rows > 0 and _visible()
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        if self._shown:
            from tqdm.auto import tqdm  # here, because in a notebook it loads widgets

            self._bar = tqdm(total=len(self._lengths), bar_format=_FORMAT, mininterval=0)
            self._start = self._next = time.perf_counter()
        return self

    def update(self) -> None:
        """To be called after every step."""
        if self._shown and time.perf_counter() >= self._next:
            self._show()
            self._next = time.perf_counter() + _INTERVAL

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._show()
            self._bar.close()

    def _show(self) -> None:
        # Before the lengths: what has ended gets no more tokens.
        under_way = [row for row in self._under_way if self._rows.finish_reason(row) == "none"]
        for row in self._under_way:
            self._lengths[row], _ = self._rows.settled(row)  # the others may be taken back
        self._under_way = under_way
        tokens, seconds = sum(self._lengths), time.perf_counter() - self._start
        self._bar.set_postfix_str(f"{tokens} tokens, {tokens / max(seconds, 1e-9):.0f} tokens/s", refresh=False)
        self._bar.n = len(self._lengths) - len(self._under_way)
        self._bar.refresh()


def _visible() -> bool:
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this: then standard error is no terminal, but is shown all the same."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
