"""TextStream: the pieces are final, whole characters, and together the text that decode gives."""

from __future__ import annotations

import pytest
from byte_tokenizers import byte_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from demiurgic.text_stream import TextStream
from demiurgic.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    """What comes out when `ids` are fed in portions of these sizes, in turn."""
    stream, given, start, turn = TextStream(tokenizer), [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        given.append(stream.feed(ids[start : start + size]))
        start, turn = start + size, turn + 1
    return [*given, stream.end()]


sizes = st.lists(st.integers(1, 90), min_size=1, max_size=5) | st.just([1])


@given(text=st.text(max_size=200) | st.text("aé你👩\u200d", max_size=200), sizes=sizes)
@settings(max_examples=150, deadline=None)
def test_text_comes_back_whatever_the_portions(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids, sizes)) == tokenizer.decode(ids)


@given(data=st.data(), sizes=sizes)
@settings(max_examples=150, deadline=None)
def test_any_ids_give_what_decode_gives(byte_tokenizer: Tokenizer, data: st.DataObject, sizes: list[int]) -> None:
    few = data.draw(st.lists(st.integers(0, byte_tokenizer.vocab_size - 1), min_size=1, max_size=4))
    ids = data.draw(st.lists(st.sampled_from(few) | st.integers(0, byte_tokenizer.vocab_size - 1), max_size=300))
    assert "".join(pieces(byte_tokenizer, ids, sizes)) == byte_tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["a", "b", "c", ""]),
        ("é", ["", "é", ""]),  # 2, 3 and 4 bytes
        ("€", ["", "", "€", ""]),
        ("😀", ["", "", "", "😀", ""]),
        ("a😀", ["a", "", "", "", "😀", ""]),
        ("\ufffdb", ["", "", "", "\ufffdb", ""]),  # a real replacement character waits for the next
        ("\ufffd", ["", "", "", "\ufffd"]),
    ],
)
def test_pieces_of_single_bytes(byte_tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    assert pieces(byte_tokenizer, byte_ids(byte_tokenizer, text.encode()), [1]) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\xe2\x82" * 400,  # no token boundary is one of characters
        b"\xff" * 400,
        b"\xf0\x9f\x98" * 300,
        "😀".encode() * 300,
        b"\x80" * 7 + b"a" + b"\xf0" * 300,
    ],
)
def test_long_rows_of_broken_bytes(byte_tokenizer: Tokenizer, data: bytes) -> None:
    ids = byte_ids(byte_tokenizer, data)
    given = pieces(byte_tokenizer, ids, [1])
    assert "".join(given) == byte_tokenizer.decode(ids) == data.decode(errors="replace")
    assert len(given[-1]) <= 32  # the rest came out before the end


@pytest.mark.parametrize("extra", ["", "😀", "<eos>"])
def test_the_work_for_each_id_does_not_grow(byte_tokenizer: Tokenizer, extra: str) -> None:
    longest = 0

    class Counting:
        def decode(self, ids: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return byte_tokenizer.decode(ids)

    special = byte_tokenizer.eos_token_ids if extra == "<eos>" else byte_ids(byte_tokenizer, extra.encode())
    stream = TextStream(Counting())
    for i in byte_ids(byte_tokenizer, b"\xe2") + (special or byte_ids(byte_tokenizer, b"x")) * 500:
        stream.feed([i])
    assert longest < 100


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    eos, a = tokenizer.eos_token_ids[0], tokenizer.encode("a b")
    assert "".join(pieces(tokenizer, [eos, *a, eos, *a[1:], eos], [1])) == tokenizer.decode(a + a[1:])


def test_end_gives_the_rest_once_and_starts_anew(byte_tokenizer: Tokenizer) -> None:
    stream, ids = TextStream(byte_tokenizer), byte_ids(byte_tokenizer, "€".encode())
    assert [stream.feed(ids[:2]), stream.end(), stream.end()] == ["", "\ufffd", ""]
    assert [stream.feed(ids), stream.end()] == ["€", ""]
