"""Text of a model made safe to look at."""

from __future__ import annotations

# Control characters could change a terminal's state, and a page shows them as nothing: instead, their pictures.
_PICTURES: dict[int, int] = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """`text` with the pictures of its control characters, but for line ends and tabs."""
    return text.translate(_PICTURES)
