"""Writes the tables of options and presets into docs/generation_improvements.md, from the one table in the core.

python docs/options_table.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import demiurgic
from demiurgic import GenerationConfig

DOCUMENT = Path(__file__).with_name("generation_improvements.md")
PRESET_COLUMNS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "max_new_tokens",
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def options() -> str:
    rows = [
        [f"`{o['name']}`", f"`{o['type']}`", f"`{o['default']}`", str(o["range"]), str(o["doc"])]
        for o in demiurgic.options()
    ]
    return table(["option", "type", "default", "allowed", "meaning"], rows)


def presets() -> str:
    rows = []
    for name, doc in demiurgic._C.presets().items():
        config = getattr(GenerationConfig, name)()
        rows.append([f"`{name}`", *(str(getattr(config, column)) for column in PRESET_COLUMNS), doc])
    return table(["preset", *(f"`{column}`" for column in PRESET_COLUMNS), "for"], rows)


def with_tables(text: str) -> str:
    """The document with the tables made anew between their marks."""
    for name, made in (("options", options()), ("presets", presets())):
        marks = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)"
        text, found = re.subn(marks, lambda m, made=made: f"{m[1]}\n{made}\n{m[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"{DOCUMENT} has {found} pairs of marks for the table of {name} instead of one.")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
