"""The repetition guard against a plain search, and through generate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import table_model

from demiurgic import _C, GenerationConfig, generate

LONGEST_PERIOD = 1024


def replay(tokens: list[int], prompt: tuple[int, ...] = (0,), **options: Any) -> tuple[str, list[int]]:
    """Why a row of these tokens ends, and what is left of it."""
    row = _C.Replay(prompt, GenerationConfig(**{"max_new_tokens": len(tokens)} | options))
    reason = "none"
    for token in tokens:
        reason = row.append(token)
        if reason != "none":
            break
    return reason, row.tokens


def cycle_at_end(row: list[int], copies: int, least: int) -> tuple[int, int] | None:
    """The shortest period of a cycle that counts at the end of a row, and how many tokens it has."""
    for period in range(1, min(LONGEST_PERIOD, len(row) // copies) + 1):
        length = period
        while length < len(row) and row[-length - 1] == row[-length - 1 + period]:
            length += 1
        if length >= max(copies * period, least):
            return period, length
    return None


def first_end(row: list[int], copies: int, least: int, held: int = 0) -> tuple[int, int, int] | None:
    """Tokens at which the row ends first, the period and the tokens of the cycle."""
    for end in range(max(held, 1), len(row) + 1):
        if found := cycle_at_end(row[:end], copies, least):
            return (end, *found)
    return None


def rows() -> st.SearchStrategy[list[int]]:
    """A beginning, a unit some times, an end; in few letters, so that there are cycles inside of cycles."""
    part = st.lists(st.integers(0, 2), max_size=7)
    return st.builds(lambda head, unit, times, tail: head + unit * times + tail, part, part, st.integers(1, 9), part)


@given(row=rows(), copies=st.integers(2, 5), least=st.integers(1, 24), held=st.integers(0, 20), trim=st.booleans())
@settings(max_examples=600, deadline=None)
def test_as_a_plain_search_says(row: list[int], copies: int, least: int, held: int, trim: bool) -> None:
    held = min(held, len(row))
    reason, left = replay(
        row, stop_on_repetition=copies, repetition_min_tokens=least, min_new_tokens=held, trim_repetition=trim
    )
    found = first_end(row, copies, least, held)
    if found is None or not row:
        assert (reason, left) == ("length" if row else "none", row)
        return
    end, period, length = found
    assert reason == "repetition"
    assert left == row[: max(end - length + period, held) if trim else end]


@pytest.mark.parametrize("period", [1, 2, 50, 333, 1023, 1024])
@pytest.mark.parametrize("copies", [2, 3])
def test_any_period_is_found_at_the_threshold(period: int, copies: int) -> None:
    row = [7, *range(100, 100 + period)] + copies * list(range(5000, 5000 + period))
    reason, left = replay([*row, 1, 2, 3], stop_on_repetition=copies, repetition_min_tokens=1)
    assert (reason, left) == ("repetition", row)
    _, left = replay(row, stop_on_repetition=copies, repetition_min_tokens=1, trim_repetition=True)
    assert left == row[: 1 + 2 * period]


def test_longer_periods_are_not_looked_for() -> None:
    unit = list(range(1025))
    assert replay(unit * 3, stop_on_repetition=2)[0] == "length"


def test_the_prompt_does_not_count() -> None:
    assert replay([1] * 63, prompt=(1,) * 200, stop_on_repetition=2)[0] == "length"
    assert replay([1] * 64, prompt=(1,) * 200, stop_on_repetition=2)[0] == "repetition"


def test_stop_ids_come_first() -> None:
    assert replay([5, 5], stop_on_repetition=2, repetition_min_tokens=2, eos_token_id=6)[0] == "repetition"
    assert replay([6, 6], stop_on_repetition=2, repetition_min_tokens=2, eos_token_id=6)[0] == "eos"


def test_what_is_settled_under_trim_repetition() -> None:
    row = _C.Replay([0], GenerationConfig(stop_on_repetition=3, repetition_min_tokens=1, trim_repetition=True))
    settled = []
    for token in [1, 2, 3, 1, 2, 4, 2, 4, 2, 4]:
        row.append(token)
        settled.append(row.settled[0])
    assert settled == [1, 2, 3, 3, 3, 6, 6, 6, 6, 6]
    assert row.tokens == [1, 2, 3, 1, 2, 4]


def looping_model(period: int) -> Any:
    """After token i comes i + 1, and 0 after the last."""
    table = [[20.0 if after == (i + 1) % period else 0.0 for after in range(period)] for i in range(period)]
    return table_model(table)


@pytest.mark.parametrize("period", [1, 7, 50])
def test_a_model_that_loops_is_stopped_within_two_periods_after_the_threshold(period: int) -> None:
    options = {"max_new_tokens": 2000, "do_sample": False, "return_dict_in_generate": True}
    result = generate(looping_model(period), [[0], [period // 2]], stop_on_repetition=4, **options)
    threshold = max(64, 4 * period)
    assert result.finish_reasons == ["repetition"] * 2
    assert all(threshold <= length <= threshold + 2 * period for length in result.lengths)
    trimmed = generate(looping_model(period), [0], stop_on_repetition=4, trim_repetition=True, **options)
    assert trimmed.completions[0] == [(i + 1) % period for i in range(period)]
    assert trimmed.logprobs.shape == (1, period)


def table_of_data(equal_rows: int) -> str:
    numbers = "".join(f'    ("item {i}", {i * 37 % 101}, {i / 8}),\n' for i in range(200))
    return f"ROWS = [\n{numbers}]\nZEROS = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * equal_rows + "]\n"


def test_a_table_of_data_is_no_repetition_by_the_command_lines_default() -> None:
    from demiurgic import load
    from demiurgic.cli_options import DEFAULTS

    ids = load("tiny")[1].encode(table_of_data(equal_rows=8))
    assert replay(ids, **DEFAULTS)[0] == "length"
    assert replay(load("tiny")[1].encode(table_of_data(equal_rows=60)), **DEFAULTS)[0] == "repetition"
    assert replay(ids)[0] == "length"  # off by default elsewhere
