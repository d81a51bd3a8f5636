"""progress=True: what the bar says, where it is not shown, and that it changes nothing."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from models import fixed_logits_model, tiny_model

from demiurgic import GenerationError, engine, generate, progress

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7], [5]]  # with max_length=7 they end after 2, 4 and 6 tokens


class Screen(io.StringIO):
    """Standard error, as a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


class StepByStep(engine.Generation):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{**keywords, "interruptible": True})


def screen(monkeypatch: pytest.MonkeyPatch, terminal: bool = True) -> Screen:
    """Puts one in place, and a look after every step instead of every tenth of a second.

    Not a fixture, because pytest sets its own standard error before the test's body.
    """
    monkeypatch.setattr(sys, "stderr", found := Screen(terminal))
    monkeypatch.setattr(progress, "_INTERVAL", 0)
    monkeypatch.setattr(engine, "Generation", StepByStep)
    return found


def test_bar_counts_ended_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)
    generate(tiny_model(), PROMPTS, max_length=7, do_sample=False, progress=True)
    shown = terminal.getvalue()
    assert list(dict.fromkeys(re.findall(r"(\d+)/3 sequences", shown))) == ["0", "1", "2", "3"]
    counts = [int(count) for count in re.findall(r"(\d+) tokens,", shown)]
    assert counts == sorted(counts) and set(counts) >= {3, 6, 12} and counts[-1] == 2 + 4 + 6
    assert re.search(r"12 tokens, \d+ tokens/s", shown)


def test_bar_does_not_count_what_may_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)
    options = {"stop_on_repetition": 9, "repetition_min_tokens": 9, "trim_repetition": True, "do_sample": False}
    out = generate(fixed_logits_model([0.0, 1.0]), [0], max_new_tokens=30, progress=True, **options)
    assert out.tolist() == [[0, 1]]
    counts = [int(count) for count in re.findall(r"(\d+) tokens,", terminal.getvalue())]
    assert set(counts) == {1}  # of nine that came


def test_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch)
    model, options = tiny_model(), {"max_new_tokens": 9, "seed": 3, "num_return_sequences": 2}
    assert generate(model, PROMPTS, progress=True, **options).equal(generate(model, PROMPTS, **options))
    assert model.generate(PROMPTS, progress=True, **options).equal(model.generate(PROMPTS, **options))


@pytest.mark.parametrize("options", [{}, {"progress": False}])
def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    terminal = screen(monkeypatch)
    generate(tiny_model(), PROMPTS, max_new_tokens=2, **options)
    assert terminal.getvalue() == ""


def test_off_where_nothing_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = screen(monkeypatch, terminal=False)
    generate(tiny_model(), PROMPTS, max_new_tokens=2, progress=True)
    assert file.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    generate(tiny_model(), PROMPTS, max_new_tokens=2, progress=True)


@pytest.mark.parametrize(("app", "shown"), [("IPKernelApp", True), ("TerminalIPythonApp", False)])
def test_on_in_a_notebook(monkeypatch: pytest.MonkeyPatch, app: str, shown: bool) -> None:
    shell = SimpleNamespace(config={app: {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    file = screen(monkeypatch, terminal=False)
    generate(tiny_model(), PROMPTS, max_new_tokens=2, progress=True)
    assert ("3/3 sequences" in file.getvalue()) is shown


@pytest.mark.parametrize("wrong", [1, 0, "yes", None, []])
def test_only_a_bool(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^progress is .*, but must be True or False\.$"):
        generate(tiny_model(), PROMPTS, progress=wrong)


def test_no_rows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)
    with pytest.raises(ValueError, match="give at least one prompt"):
        generate(tiny_model(), [], progress=True)
    assert terminal.getvalue() == ""


def test_bar_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)
    model = fixed_logits_model([0.0, float("nan"), 1.0])
    with pytest.raises(GenerationError):
        generate(model, [[1], [2]], max_new_tokens=3, progress=True)
    assert "2/2 sequences" in terminal.getvalue()
