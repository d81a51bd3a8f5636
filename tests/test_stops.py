"""Ends by text: stop strings over bytes, ends of definitions and of fenced blocks; what is kept and what held back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import table_model, tiny_model
from same_bits import check_same_bits

import demiurgic
from demiurgic import _C, GenerationConfig, generate


def replay(
    tokens: list[bytes], prompt: bytes = b"", special: list[int] | None = None, **options: Any
) -> tuple[_C.Replay, str, list[tuple[int, int]]]:
    """A row that is given `tokens`, as far as it goes: the row, why it ended, and what was settled after each token."""
    table = _C.TokenBytes([*tokens, prompt], special or [], "raw")
    row = _C.Replay([len(tokens)], GenerationConfig(**{"max_new_tokens": len(tokens)} | options), table)
    reason, settled = "none", []
    for token in range(len(tokens)):
        reason = row.append(token)
        settled.append(row.settled)
        if reason != "none":
            break
    return row, reason, settled


def ended_text(text: str, **options: Any) -> str:
    """What is left of a text that comes in single bytes."""
    return replay([bytes([byte]) for byte in text.encode()], **options)[0].text.decode()


def split(data: st.DataObject, text: bytes) -> list[bytes]:
    """`text` cut into tokens, some of them without bytes."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ---- stop strings against bytes.find --------------------------------------------------------------------------------

few_letters = st.text("abé€", max_size=30)
stop_lists = st.lists(st.text("abé€", min_size=1, max_size=5), min_size=1, max_size=4)


def first_match(text: bytes, stops: list[str], begin: int = 0) -> tuple[int, int] | None:
    """Begin and end of the match that begins first, of those the shortest."""
    found = [(at, at + len(stop.encode())) for stop in stops if (at := text.find(stop.encode(), begin)) >= 0]
    return min(found, default=None)


@given(data=st.data(), text=few_letters, stops=stop_lists, include=st.booleans())
@settings(max_examples=600, deadline=None)
def test_as_find_says_whatever_the_tokens(data: st.DataObject, text: str, stops: list[str], include: bool) -> None:
    tokens = split(data, text.encode())
    row, reason, _ = replay(tokens, stop=stops, include_stop=include)
    match = first_match(text.encode(), stops)
    if match is None:
        assert (reason, row.text, len(row.tokens), row.stopped_by) == ("length", text.encode(), len(tokens), None)
        return
    cut = match[include]
    ends = [sum(map(len, tokens[: i + 1])) for i in range(len(tokens))]
    kept = sum(end < cut for end in ends) + 1 if include else sum(end <= cut for end in ends)
    assert (reason, row.text) == ("stop", text.encode()[:cut])
    assert row.tokens == list(range(kept))
    assert row.stopped_by is not None
    assert text.encode()[match[0] : match[1]] == str(row.stopped_by).encode()


@given(data=st.data(), text=few_letters, stops=stop_lists, least=st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_min_new_tokens_keeps_its_tokens(data: st.DataObject, text: str, stops: list[str], least: int) -> None:
    tokens = split(data, text.encode())
    least = min(least, len(tokens))
    row, reason, _ = replay(tokens, stop=stops, min_new_tokens=least)
    match = first_match(text.encode(), stops, begin=sum(map(len, tokens[:least])))
    assert row.text == text.encode()[: match[0] if match else None]
    assert reason == ("stop" if match else "length")
    assert len(row.tokens) >= least


@given(data=st.data(), text=few_letters, stops=stop_lists, least=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_what_is_settled_stays(data: st.DataObject, text: str, stops: list[str], least: int) -> None:
    tokens = split(data, text.encode())
    row, _, settled = replay(tokens, stop=stops, min_new_tokens=min(least, len(tokens)))
    assert settled == sorted(settled)
    for num_tokens, num_bytes in settled:
        assert row.tokens[:num_tokens] == list(range(num_tokens))
        assert row.text[:num_bytes] == text.encode()[:num_bytes]
    assert settled[-1] == (len(row.tokens), len(row.text))


@given(text=few_letters, stops=stop_lists)
@settings(max_examples=300, deadline=None)
def test_no_more_is_held_back_than_is_open(text: str, stops: list[str]) -> None:
    tokens = [bytes([byte]) for byte in text.encode()]
    beginnings = {stop.encode()[:n] for stop in stops for n in range(len(stop.encode()))}
    for i, (_, num_bytes) in enumerate(replay([*tokens, b""], stop=stops)[2][:-1], start=1):
        so_far = text.encode()[:i]
        open_end = max(n for n in range(i + 1) if so_far[i - n :] in beginnings)
        match = first_match(so_far, stops)
        assert num_bytes == min(i - open_end, match[0] if match else i)


# text, stop strings, what is left
STOPS = [
    ("def f():\n    x\ndef g()", ["\ndef "], "def f():\n    x"),
    ("ab", ["ab"], ""),
    ("xab", ["b", "ab"], "x"),  # the one that begins first, not the one that ends first or stands first
    ("abcd", ["bc", "abcd"], ""),  # the longer one begins before the other, which lies inside of it
    ("abce", ["bc", "abcd"], "a"),  # and is not there
    ("abc", ["bc", "abcd"], "a"),  # or not known when the row ends
    ("aabcbcx", ["bcx", "abcbd"], "aabc"),
    ("abab", ["abab", "aba"], ""),
    ("größer", ["ö"], "gr"),
    ("€€", ["€€€", "€"], ""),
    ("日本語", ["本"], "日"),
    ("nothing", ["x"], "nothing"),
    ("aaa", ["aa", "a"], ""),
    ("x\0y", ["\0"], "x"),
]


@pytest.mark.parametrize(("text", "stops", "left"), STOPS)
def test_stop_strings(text: str, stops: list[str], left: str) -> None:
    data = text.encode()
    for size in range(1, len(data) + 1):
        for offset in range(size):
            tokens = [data[:offset], *(data[i : i + size] for i in range(offset, len(data), size))]
            row, reason, _ = replay(tokens, stop=stops)
            assert row.text.decode() == left
            assert reason == ("stop" if left != text else "length")
            assert b"".join(tokens[: len(row.tokens)]) == data[: sum(map(len, tokens[: len(row.tokens)]))]
            assert sum(map(len, tokens[: len(row.tokens)])) <= len(left.encode())


def test_a_stop_string_at_every_offset() -> None:
    for before in range(12):
        text = "a" * before + "STOP" + "b" * 5
        assert ended_text(text, stop="STOP") == "a" * before
        assert ended_text(text, stop="STOP", include_stop=True) == "a" * before + "STOP"


def test_special_tokens_stand_for_no_bytes() -> None:
    row, reason, _ = replay([b"x", b"S", b"<eos>", b"T", b"y"], special=[2], stop="ST")
    assert (reason, row.text, row.tokens) == ("stop", b"x", [0])
    row, reason, _ = replay([b"x", b"<eos>", b"y"], special=[1], stop="<eos>")
    assert (reason, row.text) == ("length", b"xy")


def test_a_stop_string_comes_before_eos_and_stop_ids() -> None:
    assert replay([b"a", b"b"], stop="b", eos_token_id=1)[1] == "stop"
    assert replay([b"a", b"b"], stop="b", eos_token_id=1)[0].text == b"a"
    assert replay([b"a", b"b"], stop="c", eos_token_id=1)[1] == "eos"
    assert replay([b"a", b"b"], stop="b", stop_token_ids=[1])[0].stopped_by == "b"
    assert replay([b"a", b"b"], stop="c", stop_token_ids=[1])[0].stopped_by == 1
    assert replay([b"a", b"b"], stop="abc", eos_token_id=0)[1] == "eos"
    row, reason, _ = replay([b"ab", b"c"], stop=["b", "abd"], eos_token_id=1)
    assert (reason, row.text) == ("stop", b"a")


def test_min_length_counts_the_prompt() -> None:
    tokens = [b"s", b"s", b"s", b"s"]
    assert replay(tokens, prompt=b"xx", stop="s", min_length=3)[0].tokens == [0, 1]
    assert replay(tokens, prompt=b"xx", stop="s", min_length=1)[0].tokens == []


def test_nothing_can_be_appended_to_a_row_that_has_ended() -> None:
    row, _, _ = replay([b"a", b"b"], stop="a")
    with pytest.raises(ValueError, match="has ended"):
        row.append(0)


# ---- the end of a definition ----------------------------------------------------------------------------------------

DEFINITIONS = [
    "def f(x):\n    return x\n",
    "def f(x): return x\n",
    "async def f(x):\n    await x\n",
    "class A:\n    def g(self):\n        pass\n\n    def h(self):\n        return 1\n",
    "def f(\n    a,\n    b,\n) -> int:\n    return a\n",
    "def f(\na,\nb):\n  return {\n'x': 1,\n}\n",
    'def f():\n    """One.\n\nTwo: (not closed [\n"""\n    return 1\n',
    "def f():\n    '''\\'''\nx'''\n    return 1\n",
    "def f():\n    s = 'it''s # no comment'\n    return s\n",
    "def f():\n    return r'\\'\n",
    "def f():\n    return '('  # a comment with ( and '\n",
    "def f():\n    x = 1 + \\\n2\n    return x\n",
    "def f():\n\n\n    return 1\n",
    "def f():\n    a\n# in the first column\n\n    return a\n",
    "def f():\n    return a\n    # the last\n",
    "def f():\n\treturn 1\n",
    "def f():\r\n    return 1\r\n",
    "@decorator(\n1)\n@other\ndef f():\n    return 1\n",
    "def f():\n    return f'{x}' \"\" ''\n",
    "def größe(ä):\n    return 'ö'\n",
    "def f():\n    x = 'not closed\n    return 1\n",
    "class A: pass\n",
    "def f():\n    ''''''\n    x = ''\n    return ''''a'''\n",
]
BEFORE = [
    "",
    "import os\n\n",
    "x = '''\ndef no():\n    1\n'''\n",
    "define = 1\nclassic = 2\n",
    "# def f():\n",
    "f(\ndef_=1\n)\n",
]
AFTER = [
    "print(1)\n",
    "def g():\n    pass\n",
    "@decorator\n",
    "if True:\n    pass\n",
    '"""text"""\n',
    "\\x",
    ")",
    "```\n",
]
BETWEEN = ["", "\n", "\n\n  \n", "# comment\n", "\n# comment (\n\n"]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_end_of_a_definition(definition: str) -> None:
    for before in BEFORE:
        for between in BETWEEN:
            for after in AFTER:
                text = before + definition + between + after
                assert ended_text(text, stop_at="function") == before + definition, text


@given(data=st.data(), before=st.sampled_from(BEFORE), definition=st.sampled_from(DEFINITIONS))
@settings(max_examples=300, deadline=None)
def test_a_definition_that_the_prompt_has_begun(data: st.DataObject, before: str, definition: str) -> None:
    between, after = data.draw(st.sampled_from(BETWEEN)), data.draw(st.sampled_from(AFTER))
    text, least = (before + definition + between + after).encode(), len(before.encode()) + len(b"async def f")
    begun = data.draw(st.integers(min(least, len((before + definition).encode())), len((before + definition).encode())))
    tokens = split(data, text[begun:])
    row, reason, settled = replay(tokens, prompt=text[:begun], stop_at="function")
    assert (reason, row.stopped_by) == ("stop", "function")
    assert text[:begun] + row.text == (before + definition).encode()
    assert all(row.text[:num_bytes] == text[begun:][:num_bytes] for _, num_bytes in settled)


def test_definitions_that_end_in_the_prompt_are_over() -> None:
    prompt = "def f():\n    return 1\n\nx = 1\n"
    row, reason, _ = replay([b"def g():\n", b"    return 2\n", b"x"], prompt=prompt.encode(), stop_at="function")
    assert (reason, row.text) == ("stop", b"def g():\n    return 2\n")
    row, reason, _ = replay([b"y = 1\n", b"z = 2\n"], prompt=prompt.encode(), stop_at="function")
    assert (reason, row.text) == ("length", b"y = 1\nz = 2\n")


def test_what_is_held_back_at_the_end_of_a_definition() -> None:
    tokens = [b"def f():\n    return 1", b"\n", b"\n", b"# a", b"\n", b"    x = 1", b"\n", b"print"]
    row, _, settled = replay(tokens, stop_at="function")
    assert [num_tokens for num_tokens, _ in settled] == [1, 2, 2, 2, 2, 6, 7, 7]
    assert row.tokens == list(range(7))


def test_an_end_in_the_first_min_new_tokens_is_none() -> None:
    text = [b"def f():\n", b"    a\n", b"x = 1\n", b"def g():\n", b"    b\n", b"y"]
    assert replay(text, stop_at="function")[0].text == b"def f():\n    a\n"
    assert replay(text, stop_at="function", min_new_tokens=2)[0].text == b"def f():\n    a\n"
    assert replay(text, stop_at="function", min_new_tokens=3)[0].text == b"".join(text[:5])


def test_stop_and_stop_at_together() -> None:
    text = "def f():\n    return 1\n\n\nprint(1)\n"
    assert ended_text(text, stop_at="function", stop="\n\n\n") == "def f():\n    return 1"
    assert ended_text(text, stop_at="function", stop="print(2") == "def f():\n    return 1\n"
    assert ended_text(text, stop_at="function", stop="print(1") == "def f():\n    return 1\n"
    assert ended_text(text, stop_at="function", stop="\n\nprint(1)") == "def f():\n    return 1\n"
    assert ended_text(text, stop_at="function", stop="1\n\n\nprint(1)") == "def f():\n    return "


# ---- the end of a fenced block --------------------------------------------------------------------------------------

# text with | where it ends; without one it does not
BLOCKS = [
    "text\n```python\ncode\n```|\nmore",
    "```\ncode\n```|  \nmore",
    "```` md\n```\ninner\n```\n````|\nmore",
    "~~~\n```\n~~~|\n",
    "~~~ a`b\nx\n~~~~~|\n",
    "``` ```cpp\nint x;\n```|\n",
    "```\n```|\n",
    "   ```\n x\n  ```|\n",
    "    ```\nx\n```\ny\n",
    "``\nx\n``\ny",
    "a ```b``` c\n```x = 1```\ny\n",
    "```py\nprint('```')\n``` no\n ```x\n",
    "```py\ncode\n```",
    "```py\r\ncode\r\n```|\r\nmore",
]


@pytest.mark.parametrize("marked", BLOCKS)
def test_the_end_of_a_fenced_block(marked: str) -> None:
    text, left = marked.replace("|", ""), marked.split("|")[0]
    assert ended_text(text, stop_at="code_block") == left
    for begun in range(len(left)):
        row, reason, settled = replay(
            [text[begun : begun + 2].encode(), *(c.encode() for c in text[begun + 2 :])],
            prompt=text[:begun].encode(),
            stop_at="code_block",
        )
        assert (reason == "stop") == ("|" in marked)
        assert text[:begun] + row.text.decode() == left
        assert all(row.text[:num_bytes].decode() == text[begun:][:num_bytes] for _, num_bytes in settled)


def test_a_block_that_ends_in_the_prompt_is_over() -> None:
    row, reason, _ = replay([b"\n", b"a\n", b"```\nb\n", b"```\n"], prompt=b"```\nx\n```", stop_at="code_block")
    assert (reason, row.text) == ("stop", b"\na\n```\nb\n```")


# ---- through generate -----------------------------------------------------------------------------------------------

SAMPLED = {"max_new_tokens": 40, "seed": 5, "top_k": 0, "temperature": 1.0, "return_dict_in_generate": True}
PROMPTS = [[5, 6], [7, 50, 8], [9]]


class Letters:
    """A byte-level tokenizer of 97 tokens: letters, pairs of them, and halves of é."""

    n_vocab = 97
    special_tokens_set: frozenset[str] = frozenset()

    def decode_single_token_bytes(self, token: int) -> bytes:
        if token % 7 == 0:
            return b"\xc3" if token % 2 else b"\xa9"
        return (chr(97 + token % 5) * (1 + token % 2)).encode()


LETTERS = Letters()
STOP = ["aab", "é", "cd", "dda"]


def untrimmed(**options: Any) -> list[bytes]:
    result = generate(tiny_model(), PROMPTS, **(SAMPLED | options))
    return [b"".join(map(LETTERS.decode_single_token_bytes, ids)) for ids in result.completions]


def stopped(model: Any = None, prompts: Any = PROMPTS, **options: Any) -> demiurgic.GenerationOutput:
    return generate(model or tiny_model(), prompts, **(SAMPLED | {"tokenizer": LETTERS, "stop": STOP} | options))


def assert_same(a: demiurgic.GenerationOutput, b: demiurgic.GenerationOutput, rows: slice = slice(None)) -> None:
    assert (a.completions, a.texts, a.finish_reasons) == (b.completions[rows], b.texts[rows], b.finish_reasons[rows])
    for ids, logprobs, others in zip(a.completions, a.logprobs, b.logprobs[rows], strict=True):
        check_same_bits(logprobs[: len(ids)], others[: len(ids)])


def test_generate_ends_rows_at_their_stop_strings() -> None:
    whole, result = untrimmed(), stopped()
    assert "stop" in result.finish_reasons
    for row, text in enumerate(whole):
        match = first_match(text, STOP)
        assert result.texts is not None
        assert result.texts[row] == text[: match[0] if match else None].decode(errors="replace")
        ids = result.completions[row]
        assert result.lengths[row] == len(ids)
        if match:
            assert result.stop_reasons is not None
            assert result.stop_reasons[row] in STOP
            assert (
                b"".join(map(LETTERS.decode_single_token_bytes, ids))
                == text[: match[0]][: len(ids) * 2][: sum(len(LETTERS.decode_single_token_bytes(i)) for i in ids)]
            )
        assert result.logprobs[row, len(ids) :].isnan().all()
        assert not result.logprobs[row, : len(ids)].isnan().any()
    assert result.sequences.shape[1] == 3 + max(result.lengths)


def test_a_row_does_as_many_steps_as_its_own_text_takes() -> None:
    table = [[20.0 if after == (i + 1) % 5 else 0.0 for after in range(5)] for i in range(5)]
    tokens = _C.TokenBytes(list("abcde"), [], "raw")
    with demiurgic.engine.Generation(
        table_model(table),
        [[0]],
        config=GenerationConfig(stop=["de"], do_sample=False),
        tokenizer=tokens,
    ) as generation:
        shown = []
        while generation.advance():
            shown.append((generation.settled(0), generation.text(0)))
    assert shown == [((1, 1), b"b"), ((2, 2), b"bc"), ((2, 2), b"bc")]
    result = generation.result()
    assert (result.completions, result.texts, result.stop_reasons) == ([[1, 2]], ["bc"], ["de"])


@pytest.mark.parametrize("include", [False, True])
def test_rows_alone_and_in_any_company(include: bool) -> None:
    base = {"num_return_sequences": 3, "include_stop": include, "stop_on_repetition": 3, "repetition_min_tokens": 6}
    together = stopped(**base)
    for row, seed in enumerate(together.seeds):
        alone = stopped(prompts=[PROMPTS[row // 3]], **(base | {"num_return_sequences": 1, "seed": [seed]}))
        assert_same(alone, together, slice(row, row + 1))
    for company in (
        {"max_running": 2},
        {"max_step_tokens": 1},
        {"use_cache": False},
        {"cache_bytes": 4 * 2 * 2 * 16 * 2 * 8 * 4},
    ):
        assert_same(together, stopped(**(base | company)))


def test_texts_come_with_a_tokenizer_only() -> None:
    result = generate(tiny_model(), PROMPTS, **SAMPLED)
    assert (result.texts, result.stop_reasons) == (None, [None] * 3)
    assert stopped(stop=None).texts == [text.decode(errors="replace") for text in untrimmed()]


def test_rows_without_a_token_left() -> None:
    result = stopped(stop=["b", "bb"], logit_bias={1: 100.0})  # token 1 is bb
    assert (result.completions, result.texts, result.lengths) == ([[]] * 3, [""] * 3, [0] * 3)
    assert result.sequences.shape == (3, 3)
    assert result.logprobs.shape == (3, 0)


def test_a_row_that_ends_in_an_error_keeps_its_text() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    result = stopped(model)
    assert result.finish_reasons == ["error"] * 3
    assert result.texts == [""] * 3


def test_hugging_faces_name_of_stop() -> None:
    assert_same(stopped(), generate(tiny_model(), PROMPTS, **SAMPLED, tokenizer=LETTERS, stop_strings=STOP))
    one = generate(tiny_model(), PROMPTS, **SAMPLED, tokenizer=LETTERS, stop_strings="cd")
    assert_same(stopped(stop="cd"), one)
    with pytest.raises(TypeError, match="stop and stop_strings are the same option"):
        stopped(stop_strings="a")
    with pytest.raises(ValueError, match="stop is a list with an empty string"):
        generate(tiny_model(), PROMPTS, tokenizer=LETTERS, stop_strings=[""])


@pytest.mark.parametrize(("option", "value"), [("stop", "a"), ("stop_at", "function")])
def test_texts_need_the_tokenizer(option: str, value: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{option} looks at the text of the tokens, so it needs the tokenizer"):
        generate(tiny_model(), PROMPTS, **{option: value})
    assert torch.equal(torch.get_rng_state(), before)


def test_with_the_shipped_tokenizer() -> None:
    tokenizer = demiurgic.load("tiny")[1]
    table = demiurgic.token_bytes.token_bytes(tokenizer)
    head, body, after = "def größe(x):\n", '    """Size.\n\nOf x."""\n    return len(x)\n', "\n\nprint(größe([1]))\n"
    prompt = tokenizer.encode(head, add_bos=True)
    for options, left in [({"stop_at": "function"}, body), ({"stop": ["\n\n\n"]}, body[:-1]), ({"stop": "size"}, None)]:
        row = _C.Replay(prompt, GenerationConfig(**options), table)
        for token in tokenizer.encode(body + after):
            if row.append(token) != "none":
                break
        assert row.text.decode() == (body + after if left is None else left)
        assert row.text.decode().startswith(tokenizer.decode(row.tokens))


def test_a_call_is_refused_before_anything_is_made_of_it() -> None:
    with pytest.raises(TypeError, match="did you mean 'tokenizer'"):
        generate(tiny_model(), PROMPTS, tokeniser=LETTERS)
