"""Streams: what comes joined is what generate returns, whatever the company; ending early; errors; HF's streamers."""

from __future__ import annotations

import gc
import io
import math
import sys
import threading
from typing import Any

import pytest
import torch
from byte_tokenizers import byte_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from models import fixed_logits_model, table_model, tiny_model

from demiurgic import GenerationError, Stream, generate, stream
from demiurgic.engine import Generation
from demiurgic.tokenizer import Tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13] * 6]
LISTS = ["logprobs", "processed_logprobs", "top_logprobs", "top_logprob_ids", "entropies"]
LISTS += ["processed_top_logprobs", "processed_top_logprob_ids", "processed_entropies"]
TOLD = {"top_logprobs": 3, "top_logprobs_mode": "both", "entropy": True}


def model_for(tokenizer: Tokenizer) -> Any:
    return tiny_model(vocab_size=tokenizer.vocab_size)


def rows_of(events: list[Any], num_rows: int) -> list[dict[str, Any]]:
    """The events of each row joined: text, ids and lists of numbers; and how the row ended."""
    rows: list[dict[str, Any]] = [{"text": "", "token_ids": [], "end": None} for _ in range(num_rows)]
    for event in events:
        row = rows[event.row]
        assert row["end"] is None, "an event after the last"
        assert event.token_ids or event.finish_reason
        row["text"] += event.text or ""
        row["token_ids"] += event.token_ids
        row["end"] = event.finish_reason
        for name in LISTS:
            values = getattr(event, name)
            if values is not None:
                assert len(values) == len(event.token_ids)
                row.setdefault(name, []).extend(values)
    return rows


def check(events: list[Any], expected: Any, tokenizer: Tokenizer | None = None) -> None:
    """The events say what a result of generate says."""
    for i, row in enumerate(rows_of(events, len(expected.lengths))):
        assert row["token_ids"] == expected.completions[i]
        assert row["end"] == expected.finish_reasons[i]
        if tokenizer is not None:
            assert row["text"] == expected.texts[i]
        for name in LISTS:
            values = getattr(expected, name)
            if values is None:
                assert name not in row
            else:
                assert row.get(name, []) == as_lists(values[i, : expected.lengths[i]])


def as_lists(values: torch.Tensor) -> Any:
    """As a stream gives them: without the padding of nan and -1."""
    if values.dim() == 1:
        return values.tolist()
    return [[v for v in row if not math.isnan(v) and v != -1] for row in values.tolist()]


# ---- what comes is what generate returns ---------------------------------------------------------------------------

RUNS: list[dict[str, Any]] = [
    {},
    {"do_sample": False},
    {"num_return_sequences": 3},
    {"num_return_sequences": 2, "max_running": 2},
    {"max_step_tokens": 4},
    {"use_cache": False},
    {"eos_token_id": list(range(40))},
    {"stop_token_ids": list(range(40)), "min_new_tokens": 2},
    {"repetition_penalty": 1.3, "top_k": 5, **TOLD},
    {"max_new_tokens": 0},
    {"max_new_tokens": 1},
    {"prompt_logprobs": True},
    {"stop": ["a", "é"], **TOLD},
    {"stop": [chr(c) for c in range(33, 60)], "include_stop": True},
    {"stop": ["never found in it", "\r"], "min_new_tokens": 9},
    {"stop_at": "function"},
    {"do_sample": False, "stop_on_repetition": 2, "repetition_min_tokens": 2, **TOLD},
    {"do_sample": False, "stop_on_repetition": 2, "repetition_min_tokens": 2, "trim_repetition": True, **TOLD},
]


@pytest.mark.parametrize("options", RUNS, ids=str)
def test_events_are_the_result(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    model, options = model_for(tokenizer), {"max_new_tokens": 25, "seed": 1} | options
    expected = generate(model, PROMPTS, tokenizer=tokenizer, return_dict_in_generate=True, **options)
    with stream(model, PROMPTS, tokenizer=tokenizer, **options) as events:
        check(list(events), expected, tokenizer)
    result = events.result()
    assert torch.equal(result.sequences, expected.sequences)
    assert torch.equal(result.logprobs.nan_to_num(), expected.logprobs.nan_to_num())
    if not {"stop", "stop_at"} & options.keys():
        check(list(model.stream(PROMPTS, **options)), expected)


class Script:
    """A generation whose rows say given ids, some more at each step; of a tokenizer that the core does not know."""

    has_text = False

    def __init__(self, rows: list[list[int]], portions: list[int]) -> None:
        self.rows, self.portions, self.steps = rows, portions, 0
        self.num_rows, self.cancelled = len(rows), False

    def said(self, row: int) -> int:
        steps = range(row, row + self.steps)  # rows get on differently
        return min(len(self.rows[row]), sum(self.portions[i % len(self.portions)] for i in steps))

    def advance(self) -> bool:
        self.steps += 1
        return any(self.finish_reason(row) == "none" for row in range(self.num_rows))

    def tokens(self, row: int, start: int = 0) -> list[int]:
        return self.rows[row][start : self.said(row)]

    def finish_reason(self, row: int) -> str:
        return "length" if self.said(row) == len(self.rows[row]) and self.steps else "none"

    def numbers(self, row: int, start: int, count: int) -> dict[str, Any]:
        return {"logprobs": [0.0] * count, "processed_logprobs": [0.0] * count}

    def timings(self) -> dict[str, float]:
        return {"prefill": 0.0, "decode": 0.0}

    def settled(self, row: int) -> tuple[int, int]:
        return self.said(row), 0

    def stop_reason(self, row: int) -> None:
        return None

    def error(self, row: int) -> None:
        return None

    def cancel(self) -> None:
        self.cancelled = True


portions = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any) | st.just([1])
MIXED = "aé你👩\u200d 🏳️"


def check_pieces(tokenizer: Tokenizer, rows: list[list[int]], steps: list[int]) -> list[list[str]]:
    pieces: list[list[str]] = [[] for _ in rows]
    for event in Stream(Script(rows, steps), tokenizer):  # type: ignore[arg-type]
        pieces[event.row].append(event.text or "")
    assert ["".join(row) for row in pieces] == [tokenizer.decode(ids) for ids in rows]
    return pieces


@given(texts=st.lists(st.text(max_size=60) | st.text(MIXED, max_size=60), min_size=1, max_size=3), steps=portions)
@settings(max_examples=100, deadline=None)
def test_pieces_are_whole_characters_and_together_the_text(
    tokenizer: Tokenizer, texts: list[str], steps: list[int]
) -> None:
    texts = [text.replace("\ufffd", "?") for text in texts]
    pieces = check_pieces(tokenizer, [tokenizer.encode(text) for text in texts], steps)
    assert "\ufffd" not in "".join(map("".join, pieces))  # no character was cut in two


@given(data=st.data(), steps=portions)
@settings(max_examples=100, deadline=None)
def test_any_bytes_come_as_decode_gives_them(byte_tokenizer: Tokenizer, data: st.DataObject, steps: list[int]) -> None:
    raw = data.draw(st.lists(st.binary(max_size=50) | st.text(MIXED, max_size=20).map(str.encode), min_size=1))
    check_pieces(byte_tokenizer, [byte_ids(byte_tokenizer, each) for each in raw], steps)


def test_a_text_that_ends_at_every_offset(byte_tokenizer: Tokenizer) -> None:
    ids = byte_ids(byte_tokenizer, "a👩\u200d你é\n".encode())
    for end in range(len(ids) + 1):
        [pieces] = check_pieces(byte_tokenizer, [ids[:end]], [1])
        assert all("\ufffd" not in piece for piece in pieces[:-1])


# ---- stops ---------------------------------------------------------------------------------------------------------


def speaker(ids: list[int]) -> Any:
    """A model that says distinct `ids` one after the other, after the prompt [0], and then the last for ever."""
    table = torch.zeros(300, 300)
    for token, following in zip([0, *ids], [*ids, ids[-1]], strict=True):
        table[token, following] = 9.0
    return table_model(table)


SPOKEN = "ab👩cд€f"  # no byte twice


@pytest.mark.parametrize("include_stop", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("first", range(len(SPOKEN)))
def test_a_stop_at_every_offset(byte_tokenizer: Tokenizer, first: int, length: int, include_stop: bool) -> None:
    """Byte by byte: nothing of the stop string comes out before it is known, and nothing before it is lost."""
    ids, stop = byte_ids(byte_tokenizer, SPOKEN.encode()), SPOKEN[first : first + length]
    options = {"do_sample": False, "stop": [stop, "never"], "include_stop": include_stop, "max_new_tokens": len(ids)}
    expected = generate(speaker(ids), [0], tokenizer=byte_tokenizer, return_dict_in_generate=True, **options)
    assert expected.finish_reasons == ["stop"]
    assert expected.texts == [SPOKEN[: first + (len(stop) if include_stop else 0)]]
    events = list(stream(speaker(ids), [0], tokenizer=byte_tokenizer, **options))
    check(events, expected, byte_tokenizer)
    assert events[-1].stop_reason == stop
    shown = ""
    for event in events[:-1]:
        shown += event.text
        assert expected.texts[0].startswith(shown)


def test_text_waits_only_while_a_match_is_open(byte_tokenizer: Tokenizer) -> None:
    ids = byte_ids(byte_tokenizer, b"abcdxyz")
    options = {"do_sample": False, "stop": ["bcq", "yz"], "max_new_tokens": len(ids)}
    pieces = [event.text for event in stream(speaker(ids), [0], tokenizer=byte_tokenizer, **options)]
    assert pieces == ["a", "bcd", "x", ""]  # "bc" until it is no "bcq"; of "yz" nothing


def test_a_streamer_gets_nothing_of_a_stop(byte_tokenizer: Tokenizer) -> None:
    ids, recorder = byte_ids(byte_tokenizer, b"abcdxyz"), Recorder()
    options = {"do_sample": False, "stop": ["yz"], "max_new_tokens": 9}
    generate(speaker(ids), [0], tokenizer=byte_tokenizer, streamer=recorder, **options)
    assert recorder.calls == [[[0]], *([i] for i in ids[:5]), "end"]


def test_auto_length(byte_tokenizer: Tokenizer) -> None:
    model, ids = model_for(byte_tokenizer), byte_tokenizer.encode("def f(x):\n")
    options = {"max_new_tokens": "auto", "tokenizer": byte_tokenizer, "seed": 0}
    expected = generate(model, ids, return_dict_in_generate=True, **options)
    check(list(model.stream(ids, **options)), expected, byte_tokenizer)


# ---- ending early --------------------------------------------------------------------------------------------------


def started(model: Any, **options: Any) -> tuple[Stream, Any]:
    """A stream that has given some events, and its engine."""
    events = stream(model, PROMPTS, max_new_tokens=60, seed=0, **options)
    for _ in range(4):
        next(events)
    engine = events._generation._engine
    assert engine.counters()["num_used_blocks"] > 0
    return events, engine


def test_closing_frees_the_cache() -> None:
    model = tiny_model()
    events, engine = started(model)
    events.close()
    assert engine.counters()["num_used_blocks"] == 0
    assert list(events) == []
    result = events.result()
    assert result.finish_reasons == ["cancelled"] * 3
    whole = generate(model, PROMPTS, max_new_tokens=60, seed=0, return_dict_in_generate=True)
    for part, all_of_it in zip(result.completions, whole.completions, strict=True):
        assert 0 < len(part) < 60 and part == all_of_it[: len(part)]
    events.close()  # once more does no harm


def test_leaving_with_frees_the_cache() -> None:
    with stream(tiny_model(), PROMPTS, max_new_tokens=60, seed=0) as events:
        next(events)
        engine = events._generation._engine
        assert engine.counters()["num_used_blocks"] > 0
    assert engine.counters()["num_used_blocks"] == 0


def test_losing_the_last_reference_frees_the_cache() -> None:
    events, engine = started(tiny_model())
    gc.disable()
    try:
        del events
        assert engine.counters()["num_used_blocks"] == 0
    finally:
        gc.enable()


def test_breaking_out_of_the_loop_ends_it() -> None:
    model, engines = tiny_model(), []

    def watched() -> Stream:
        events = stream(model, PROMPTS, max_new_tokens=60, seed=0)
        engines.append(events._generation._engine)
        return events

    for event in watched():
        if len(event.token_ids) > 0:
            break
    assert engines[0].counters()["num_used_blocks"] == 0
    steps = engines[0].counters()["num_steps"]
    generate(model, [1, 2], max_new_tokens=2)  # the model is usable, the engine does nothing more for the stream
    assert engines[0].counters()["num_steps"] <= steps + 2


def test_a_stream_that_is_closed_while_another_thread_steps() -> None:
    """It ends within that step, and what it has given by then does not change any more."""
    model = tiny_model()
    events, engine = started(model)
    other = threading.Thread(target=generate, args=(model, PROMPTS), kwargs={"max_new_tokens": 150, "seed": 1})
    other.start()
    next(events)
    events.close()
    result = events.result()
    assert set(result.finish_reasons) == {"cancelled"}
    other.join()
    assert events.result().completions == result.completions
    assert engine.counters()["num_used_blocks"] == 0


@pytest.mark.native
def test_two_streams_of_one_model_side_by_side() -> None:
    model = tiny_model()
    expected = [generate(model, PROMPTS, seed=s, max_new_tokens=12, return_dict_in_generate=True) for s in (0, 1)]
    streams = [stream(model, PROMPTS, seed=s, max_new_tokens=12) for s in (0, 1)]
    events: list[list[Any]] = [[], []]
    while any(streams):
        for i, each in enumerate(streams):
            if each is not None:
                event = next(each, None)
                if event is None:
                    streams[i] = None  # type: ignore[call-overload]
                else:
                    events[i].append(event)
    for given_events, result in zip(events, expected, strict=True):
        check(given_events, result)


def test_the_result_is_there_at_the_end_only() -> None:
    events = stream(tiny_model(), [1, 2], max_new_tokens=4)
    next(events)
    with pytest.raises(RuntimeError, match="still under way: iterate to its end or close it"):
        events.result()
    list(events)
    assert events.result().lengths == [4]


# ---- errors --------------------------------------------------------------------------------------------------------


def test_a_row_that_fails_ends_with_its_error_and_the_others_go_on() -> None:
    table = torch.eye(4).roll(1, dims=1) * 8
    options = {"do_sample": False, "no_repeat_ngram_size": 1, "max_new_tokens": 3}
    events, given_events = stream(table_model(table), [[0], [0, 1, 2]], **options), []
    with pytest.raises(GenerationError, match="Row 1 ended in an error: The options forbid every token") as caught:
        for event in events:
            given_events.append(event)
    last = [event for event in given_events if event.finish_reason]
    assert [(event.row, event.finish_reason) for event in last] == [(1, "error"), (0, "length")]
    assert last[0].error == caught.value.result.errors[1] and last[1].error is None
    assert caught.value.result.completions == [[1, 2, 3], [3]]
    assert list(events) == []


def test_an_exception_of_a_step_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    events, engine = started(tiny_model())

    def interrupted(self: Generation) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(10):
            next(events)
    assert engine.counters()["num_used_blocks"] == 0
    assert list(events) == []


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"temperature": -1}, ValueError, "temperature is -1"),
        ({"temprature": 1}, TypeError, "did you mean 'temperature'"),
        ({"max_runing": 1}, TypeError, "stream has no keyword 'max_runing'; did you mean 'max_running'"),
        ({"streamer": None}, TypeError, "stream has no keyword 'streamer': its events are what"),
        ({"progress": True}, TypeError, "stream has no keyword 'progress': its events say how far"),
        ({"return_dict_in_generate": True}, TypeError, r"Stream.result\(\) returns all of them; leave it out, or call"),
        ({"streamr": None}, TypeError, "There is no generation option 'streamr'"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer is a str, but must have a method decode"),
        ({"tokenizer": Tokenizer}, TypeError, "tokenizer is a type, but must"),
        ({"stop": "a"}, ValueError, "stop"),
        ({"stop": "a", "tokenizer": Script([], [])}, TypeError, "tokenizer is of type Script"),
        ({"max_running": 0}, ValueError, "max_running is 0"),
        ({"exact": 0}, TypeError, "exact is 0, but must be True or False"),
    ],
)
def test_refused_at_the_call(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        stream(tiny_model(), [1, 2], **keywords)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_tokenizer_there_is_no_text() -> None:
    assert {event.text for event in stream(tiny_model(), [1, 2], max_new_tokens=3)} == {None}


# ---- Hugging Face's streamers --------------------------------------------------------------------------------------


class Recorder:
    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.fails_at = fails_at

    def put(self, value: torch.Tensor) -> None:
        assert value.dtype == torch.int64 and value.device.type == "cpu"
        if len(self.calls) == self.fails_at:
            raise OSError("the reader is gone")
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("new", [0, 1, 7])
def test_a_streamer_gets_the_prompt_each_token_and_the_end(new: int) -> None:
    model, recorder = tiny_model(), Recorder()
    padded, mask = torch.tensor([[2, 5, 6]]), torch.tensor([[0, 1, 1]])
    out = model.generate(padded, new, attention_mask=mask, seed=0, streamer=recorder)
    assert recorder.calls == [[[5, 6]], *([token] for token in out[0, 3:].tolist()), "end"]


def test_streamers_of_transformers(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    model, ids = model_for(byte_tokenizer), byte_tokenizer.encode("def f(x)")
    options = {"max_new_tokens": 30, "seed": 2}
    expected = byte_tokenizer.decode(generate(model, ids, **options)[0, len(ids) :])
    monkeypatch.setattr("sys.stdout", printed := io.StringIO())
    generate(model, ids, streamer=transformers.TextStreamer(byte_tokenizer, skip_prompt=True), **options)
    assert printed.getvalue() == expected + "\n"
    pieces = transformers.TextIteratorStreamer(byte_tokenizer, timeout=60)
    worker = threading.Thread(target=generate, args=(model, ids), kwargs={"streamer": pieces, **options})
    worker.start()
    assert "".join(pieces) == "def f(x)" + expected
    worker.join()


def test_who_iterates_over_a_streamer_does_not_wait_for_ever() -> None:
    recorder = Recorder()
    with pytest.raises(GenerationError):
        generate(fixed_logits_model([0.0, 1.0]), [0], do_sample=False, no_repeat_ngram_size=1, streamer=recorder)
    assert recorder.calls == [[[0]], [1], "end"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"input_ids": [97]}, IndexError),
        ({"input_ids": [[1], [2]]}, ValueError),
        ({"temperature": -1}, ValueError),
        ({"temprature": 1}, TypeError),
        ({"progress": 1}, TypeError),
        ({"cache_bytes": 1000}, RuntimeError),
        ({"stop": "a"}, ValueError),
        ({"max_new_tokens": "auto"}, ValueError),
        ({"entropy": True}, ValueError),
    ],
)
def test_a_refused_call_ends_its_streamer_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    recorder = Recorder()
    with pytest.raises(error):
        generate(tiny_model(), **({"input_ids": [1, 2]} | arguments), streamer=recorder)
    assert recorder.calls == ["end"]


def test_a_bar_that_fails_ends_the_streamer(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("demiurgic.progress._visible", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError):
        generate(tiny_model(), [1, 2], max_new_tokens=3, progress=True, streamer=recorder)
    assert recorder.calls[-1] == "end" and recorder.calls.count("end") == 1


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_streamer_that_fails_ends_the_call(fails_at: int) -> None:
    model, recorder = tiny_model(), Recorder(fails_at)
    with pytest.raises(OSError, match="the reader is gone"):
        generate(model, [5, 6], max_new_tokens=5, seed=0, streamer=recorder)
    assert len(recorder.calls) == fails_at
    assert generate(model, [5, 6], max_new_tokens=5).shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "streamer", "error", "message"),
    [
        ({"input_ids": [[1], [2]]}, Recorder(), ValueError, "takes the tokens of one row, but this call has 2"),
        ({"num_return_sequences": 3}, Recorder(), ValueError, "this call has 3; demiurgic.stream tells rows apart"),
        ({}, Recorder, TypeError, "streamer is <class"),
        ({}, "yes", TypeError, r"streamer is 'yes', but must be an object with put\(ids\) and end\(\)"),
    ],
)
def test_streamers_that_are_refused(
    arguments: dict[str, Any], streamer: Any, error: type[Exception], message: str
) -> None:
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        generate(tiny_model(), **({"input_ids": [1, 2]} | arguments), streamer=streamer)
    assert torch.equal(torch.get_rng_state(), before)
