"""Warnings that point at the user's line, not at one of ours."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


def warn_caller(message: str) -> None:
    """A UserWarning at the nearest frame outside of this package, however deep inside of it this is called."""
    level = 1
    frame = sys._getframe()
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)
