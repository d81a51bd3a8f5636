"""demiurgic.text, and max_new_tokens="auto"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model

import demiurgic
from demiurgic import _C, GenerationConfig, generate
from demiurgic.text import extract_first_code_block, repetition_score, suggest_max_new_tokens

# text, content of the first block
BLOCKS = [
    ("Here:\n```python\nx = 1\n```\nand\n```\ny\n```\n", "x = 1\n"),
    ("``` ```cpp\nint x;\n```\n", "int x;\n"),
    ("```\n```python\nx\n```\n", "```python\nx\n"),
    ("```python\n```\n", ""),
    ("```python\nx = 1\n", "x = 1\n"),
    ("```python\nx = 1", "x = 1"),
    ("```python", ""),
    ("no block", None),
    ("", None),
    ("a ```b``` c", None),
    ("```x = 1``` inline\n", None),
    ("```` md\n```\na\n```\n````\n", "```\na\n```\n"),
    ("~~~rust\nfn f() {}\n~~~\n", "fn f() {}\n"),
    ("~~~\n```\nx\n~~~\n", "```\nx\n"),
    ("  ```py\n  x\n  ```\n", "  x\n"),
    ("    ```py\n    x\n    ```\n", None),
    ("```py\r\nx\r\n```\r\n", "x\r\n"),
    ("```py\nx\n``` no end\ny\n```\n", "x\n``` no end\ny\n"),
    ("```py\nprint('```')\n```\n", "print('```')\n"),
    ("```\na\u2028b\x0c\n```\n", "a\u2028b\x0c\n"),
]


@pytest.mark.parametrize(("text", "content"), BLOCKS)
def test_extract_first_code_block(text: str, content: str | None) -> None:
    assert extract_first_code_block(text) == content


def test_extract_by_language() -> None:
    text = "```sh\nls\n```\n```Python title=x\nx = 1\n```\n```python\ny = 2\n"
    assert extract_first_code_block(text, "python") == "x = 1\n"
    assert extract_first_code_block(text, "sh") == "ls\n"
    assert extract_first_code_block(text, "cpp") is None
    assert extract_first_code_block("``` ```cpp\nint x;\n```\n", "cpp") == "int x;\n"
    assert extract_first_code_block("```a\nx\n```\n```b\ny\n", "b") == "y\n"


def test_extract_without_unclosed_blocks() -> None:
    assert extract_first_code_block("```\nx\n", unclosed=False) is None
    assert extract_first_code_block("```\nx\n```", unclosed=False) == "x\n"


lines = st.lists(
    st.sampled_from(["```", "```py", "``` ```cpp", "~~~", "````", "x", " ```", "``` y", "`", ""]), max_size=8
)


@given(lines=lines)
@settings(max_examples=400, deadline=None)
def test_the_engine_ends_where_the_first_block_does(lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    table = _C.TokenBytes([bytes([byte]) for byte in range(256)], [], "raw")
    row, reason = _C.Replay([], GenerationConfig(stop_at="code_block", max_new_tokens=len(text) + 1), table), "none"
    for byte in text.encode():
        if (reason := row.append(byte)) != "none":
            break
    content = extract_first_code_block(text, unclosed=False)
    assert (content is not None) == (reason == "stop")
    assert content is None or extract_first_code_block(row.text.decode(), unclosed=False) == content
    assert text.startswith(row.text.decode())


# tokens, n, score
SCORES = [
    ([], 4, 0.0),
    ([1, 2, 3], 4, 0.0),
    ([1, 2, 3, 4], 4, 0.0),
    ([1, 2, 3, 4, 1, 2, 3, 4], 4, 1.0),
    ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8], 4, 0.8),
    ([1, 1, 1, 1], 4, 0.0),
    ([1, 1, 1, 1, 1], 4, 1.0),
    ([1, 2, 1, 3], 1, 0.5),
    ([1, 2, 3, 1, 2, 4, 5, 6], 2, 0.5),
    ("a = a = b", 2, 0.8),
    (torch.tensor([1, 2, 1, 2]), 2, 1.0),
]


@pytest.mark.parametrize(("tokens", "n", "score"), SCORES)
def test_repetition_score(tokens: Any, n: int, score: float) -> None:
    assert repetition_score(tokens, n) == pytest.approx(score)


@given(tokens=st.lists(st.integers(0, 3), max_size=30), n=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_repetition_score_by_its_definition(tokens: list[int], n: int) -> None:
    places = range(len(tokens) - n + 1)
    counts = [
        any(j <= i < j + n and any(k != j and tokens[k : k + n] == tokens[j : j + n] for k in places) for j in places)
        for i in range(len(tokens))
    ]
    assert repetition_score(tokens, n) == (sum(counts) / len(tokens) if tokens else 0.0)


# prompt, scope that is read off it
PROMPTS = [
    ("def f(x):\n", "function"),
    ("import os\n\nclass A:\n", "class"),
    ("class A:\n    def f(self):\n", "function"),
    ("async def f():\n", "function"),
    ("Write a function that sorts a list.", "function"),
    ("Write a Python class for a stack.", "class"),
    ("Write a script that renames files.", "module"),
    ("Write a module with two functions", "module"),
    ("x = ", "function"),
    ("", "function"),
]
RANGES = {"function": (128, 256), "class": (256, 512), "module": (512, 1024)}


@pytest.mark.parametrize(("prompt", "scope"), PROMPTS)
def test_suggest_max_new_tokens(prompt: str, scope: str) -> None:
    assert suggest_max_new_tokens(prompt) == suggest_max_new_tokens(prompt, scope)
    for name, (low, high) in RANGES.items():
        assert low <= suggest_max_new_tokens(prompt, name) <= high
        assert suggest_max_new_tokens("#" * 2000 + "\n" + prompt, name) == high
    assert suggest_max_new_tokens("", scope) == RANGES[scope][0]


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: extract_first_code_block(b"x"), TypeError, "text must be a str, not bytes"),
        (lambda: extract_first_code_block("x", 5), TypeError, "language must be a str, not int"),
        (lambda: repetition_score([1], 0), ValueError, "n is 0, but must be 1 or more"),
        (lambda: repetition_score([1], 1.5), TypeError, "n is 1.5, but must be an integer"),
        (lambda: repetition_score(5), TypeError, "tokens must be a row of ids or a str, not int"),
        (lambda: repetition_score([[1, 2]]), TypeError, "give one row at a time"),
        (lambda: suggest_max_new_tokens(5), TypeError, "prompt must be a str, not int"),
        (
            lambda: suggest_max_new_tokens("x", "file"),
            ValueError,
            "scope is 'file', but must be one of function",
        ),
    ],
)
def test_bad_input(attempt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attempt()


def test_code_stops_are_taken_by_stop() -> None:
    assert GenerationConfig(stop=demiurgic.CODE_STOPS).stop == ["\n\n\n", "```\n```"]


# ---- max_new_tokens="auto" ------------------------------------------------------------------------------------------

LETTERS = _C.TokenBytes([chr(32 + i) for i in range(97)], [], "raw")


def auto(prompts: list[list[int]], context: int = 2048, **options: Any) -> demiurgic.GenerationOutput:
    settings: dict[str, Any] = {"max_new_tokens": "auto", "tokenizer": LETTERS, "seed": 0}
    model = tiny_model(max_position_embeddings=context)
    return generate(model, prompts, return_dict_in_generate=True, **(settings | options))


def ids(text: str) -> list[int]:
    return [ord(letter) - 32 for letter in text]


def test_auto_is_each_prompts_own() -> None:
    prompts = ["x", "a class " + 20 * "of things ", "x" * 100]
    expected = [suggest_max_new_tokens(prompt) for prompt in prompts]
    assert expected[1] > 256 > expected[2]
    assert auto([ids(prompt) for prompt in prompts]).lengths == expected
    assert auto([ids(prompts[1])]).lengths == expected[1:2]
    assert auto([ids(prompts[0])], num_return_sequences=2).lengths == expected[:1] * 2


def test_auto_stays_within_the_context() -> None:
    assert auto([ids("x" * 30), ids("x")], context=40).lengths == [10, 39]
    assert auto([ids("x")], min_new_tokens=200).lengths == [200]
    assert auto([ids("x")], min_new_tokens=1100).lengths == [1100]
    config = GenerationConfig(min_new_tokens=1100, max_new_tokens=None, max_length=2000)
    assert auto([ids("x")], generation_config=config, max_length=None).lengths == [1100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, "max_new_tokens='auto' reads the prompt's text, so it needs the tokenizer"),
        ({"context": 3}, "max_new_tokens='auto' finds room for 0 tokens after the 5 of prompt 1"),
        ({"context": 60, "min_new_tokens": 56}, "finds room for 55 tokens after the 5 of prompt 1"),
        ({"min_new_tokens": 2044}, "finds room for 2043 tokens after the 5 of prompt 1"),
        ({"max_length": 7}, "max_new_tokens='auto' is given beside max_length=7, which wins over it; give one"),
        ({"generation_config": GenerationConfig(max_length=7)}, "is given beside max_length=7"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 2**63}, "min_new_tokens is 9223372036854775808"),
    ],
)
def test_auto_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auto([ids("x"), ids("x" * 5)], **options)


def test_auto_is_no_value_of_the_option() -> None:
    with pytest.raises(TypeError, match="max_new_tokens is 'auto' of type str"):
        GenerationConfig(max_new_tokens="auto")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_new_tokens is 'automatic' of type str"):
        auto([[1]], max_new_tokens="automatic")
