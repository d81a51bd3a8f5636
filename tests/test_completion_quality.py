"""What benchmarks/completion_quality.py counts, one line a case."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "completion_quality.py"
spec = importlib.util.spec_from_file_location("completion_quality", PATH)
assert spec and spec.loader
quality = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quality)

BODY = "    a = 1\n    b = 2\n    return a + b"
CASES = [
    (f"def f():\n{BODY}", 3),
    (f"def f():\n{BODY}\n", 3),
    (f'def f():\n    """Text."""\n{BODY}', 3),  # the docstring is no line of code
    (f"def f():\n    # why\n\n{BODY}", 3),  # nor are comments and blank lines
    (f"def f():\n{BODY}\n    c = (", 3),  # the longest prefix that parses
    (f"def f():\n{BODY}\n\n\ndef g():\n    return 1\n    x", 3),  # the first function counts
    (f"def f():\n{BODY}\n  wrong = 1", 3),
    ("def f():\n    a = (1,\n         2)\n    return a", 3),
    ("def f():\n    a = (1,\n         2\n    return a", 0),  # the bracket never closes
    ("def f():\n    return 1", 1),
    ("def f():", 0),
    ("def f(:\n    return 1", 0),
    ('def f():\n    """Text never ends.\n    a = 1\n    b = 2\n', 0),
    ("", 0),
]


@pytest.mark.parametrize(("text", "lines"), CASES)
def test_parsed_body_lines(text: str, lines: int) -> None:
    assert quality.parsed_body_lines(text) == lines


@pytest.mark.parametrize(
    ("text", "ended", "kept"), [("a\nb", True, "a\nb"), ("a\nb", False, "a"), ("a\n", False, "a"), ("a", False, "")]
)
def test_whole_lines(text: str, ended: bool, kept: str) -> None:
    assert quality.whole_lines(text, ended) == kept


def test_committed_prompts_are_headers_only() -> None:
    rows = json.loads(quality.PROMPTS.read_text())
    assert len({row["prompt"] for row in rows}) == len(rows) == 100
    held_out = set((PATH.parents[1] / "examples" / "tiny_held_out.txt").read_text().split())
    for row in rows:
        assert row["module"] in held_out
        [function] = ast.parse(row["prompt"] + "\n    pass").body
        assert isinstance(function, ast.FunctionDef)
        assert quality.body_lines(function, (row["prompt"] + "\n    pass").split("\n")) == ["    pass"]
