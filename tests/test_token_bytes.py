"""The bytes of tokens: what tokens stand for is what decoding gives, for each kind of tokenizer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import fixed_logits_model
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from demiurgic import _C, GenerationConfig, generate, load
from demiurgic.token_bytes import token_bytes

CHARACTERS = pre_tokenizers.ByteLevel.alphabet()


def byte_level() -> Backend:
    """One token a byte, some of two, and added tokens: special, not special, of characters that stand for no byte."""
    tokens = [*sorted(CHARACTERS), "ab", "Ġa", "Ã©", "ĊĊ"]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("日本", normalized=False)])
    return backend


PIECES = [*"▁abcé", "▁a", "▁▁", "▁▁▁▁a", "ab", "日本", *(f"<0x{byte:02X}>" for byte in range(256)), "<0x0g>"]


def pieces(decoder: Any) -> Backend:
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(PIECES)}, merges=[], byte_fallback=True))
    backend.decoder = decoder
    backend.add_special_tokens(["<s>"])
    return backend


def llama() -> Backend:
    strip = decoders.Strip(" ", 1, 0)
    return pieces(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]))


def gemma() -> Backend:
    return pieces(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


def metaspace() -> Backend:
    return pieces(decoders.Metaspace(prepend_scheme="always"))


def metaspace_never() -> Backend:
    return pieces(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]))


KINDS = {make: make() for make in (byte_level, llama, gemma, metaspace, metaspace_never)}
EOS = {make: backend.get_vocab_size() - (3 if make is byte_level else 1) for make, backend in KINDS.items()}
each_kind = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def text_after(prompt: list[int], ids: list[int], table: _C.TokenBytes) -> str:
    row = _C.Replay(prompt, GenerationConfig(max_new_tokens=len(ids) + 1), table)
    for token in ids:
        row.append(token)
    return row.text.decode("utf-8", errors="replace")


@each_kind
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_texts_are_what_decode_gives(make: Any, data: st.DataObject) -> None:
    backend = KINDS[make]
    # Byte fallback has its own way with bytes that are no UTF-8: it reads a run of them as no text at all.
    some = [i for i in range(backend.get_vocab_size()) if make is byte_level or "<0x" not in backend.id_to_token(i)]
    ids = data.draw(st.lists(st.sampled_from(some), max_size=12))
    prompt = data.draw(st.lists(st.sampled_from(some), max_size=2)) if make is not byte_level else []
    prompt = [EOS[make], *prompt]
    text = backend.decode(prompt) + text_after(prompt, ids, token_bytes(backend))
    assert text == backend.decode(prompt + ids)


@each_kind
def test_single_bytes(make: Any) -> None:
    backend, table = KINDS[make], token_bytes(KINDS[make])
    for token in range(backend.get_vocab_size()):
        name = backend.id_to_token(token)
        if name.startswith("<0x"):
            written = name == "<0x0g>" or make is metaspace
            assert table.of(token) == (name.encode() if written else bytes([int(name[3:5], 16)]))
    if make is byte_level:
        assert {table.of(token) for token in range(256)} == {bytes([byte]) for byte in range(256)}
        assert table.of(backend.token_to_id("Ã©")) == "é".encode()
        assert table.of(backend.token_to_id("日本")) == "日本".encode()
        assert table.of(backend.token_to_id("<think>")) == b"<think>"
    assert table.of(EOS[make]) == table.of(-1) == table.of(len(table)) == b""


def test_bytes_of_one_character_in_several_tokens() -> None:
    backend = KINDS[llama]
    ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in "größe€".encode()]
    assert text_after([], ids, token_bytes(backend)) == backend.decode(ids) == "größe€"


def test_the_first_blank_of_a_text() -> None:
    for make, first in [(llama, "   a"), (gemma, "    a"), (metaspace, "a"), (metaspace_never, "    a")]:
        backend = KINDS[make]
        blanks, a = backend.token_to_id("▁▁▁▁a"), backend.token_to_id("▁a")
        assert text_after([EOS[make]], [blanks, a], token_bytes(backend)) == first + " a"
        assert text_after([a], [blanks, a], token_bytes(backend)) == "    a a"


def test_wrappers_have_the_table_of_what_they_wrap() -> None:
    tokenizer = load("tiny")[1]
    table = token_bytes(tokenizer)
    ids = tokenizer.encode("def größer(x):\n    return 'x' # 日本")
    assert b"".join(map(table.of, ids)).decode() == tokenizer.decode(ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<eos>")
    assert [token_bytes(fast).of(i) for i in range(len(table))] == [table.of(i) for i in range(len(table))]
    fast.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    assert len(token_bytes(fast)) == len(table) + 1
    assert token_bytes(fast).of(len(table)) == b""


class Encoding:
    """What is asked of a tiktoken.Encoding."""

    def __init__(self) -> None:
        self.n_vocab = 5
        self.special_tokens_set = {"<|end|>"}

    def decode_single_token_bytes(self, token: int) -> bytes:
        return {0: b"a", 1: b"\xff\x00", 2: b"\xc3", 4: b"<|end|>"}[token]

    def encode_single_token(self, name: str) -> int:
        return {"<|end|>": 4}[name]


def test_tiktoken() -> None:
    table = token_bytes(Encoding())
    assert [table.of(token) for token in range(5)] == [b"a", b"\xff\x00", b"\xc3", b"", b""]


def test_a_table_is_made_once_and_goes_with_its_tokenizer() -> None:
    encoding = Encoding()
    assert token_bytes(encoding) is token_bytes(encoding)
    assert token_bytes(token_bytes(encoding)) is token_bytes(encoding)
    gone = weakref.ref(encoding)
    del encoding
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("tokenizer", "error", "message"),
    [
        ("gpt2", TypeError, "tokenizer is of type str; give a demiurgic or transformers tokenizer"),
        (object(), TypeError, "tokenizer is of type object"),
        (pieces(decoders.WordPiece()), ValueError, "tokenizer decodes with WordPiece, so its tokens alone"),
        (pieces(decoders.BPEDecoder()), ValueError, "tokenizer decodes with BPEDecoder"),
        (pieces(decoders.CTC()), ValueError, "tokenizer decodes with CTC"),
        (Backend(models.BPE()), ValueError, "tokenizer has no decoder"),
        (pieces(decoders.Replace("a", "b")), ValueError, "tokenizer decodes with Replace"),
        (pieces(decoders.Fuse()), ValueError, "tokenizer decodes with Fuse"),
        (
            pieces(decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip("x", 1, 0)])),
            ValueError,
            "tokenizer decodes with Replace, Strip",
        ),
        (
            pieces(decoders.Sequence([decoders.ByteLevel(), decoders.Metaspace()])),
            ValueError,
            "tokenizer decodes with ByteLevel, Metaspace",
        ),
    ],
)
def test_other_kinds_are_refused(tokenizer: Any, error: type[Exception], message: str) -> None:
    for attempt in (
        lambda: token_bytes(tokenizer),
        lambda: generate(fixed_logits_model([0, 1]), [0], tokenizer=tokenizer, stop="a"),
    ):
        with pytest.raises(error, match="text is made of its tokens' bytes: byte-level BPE") as caught:
            attempt()
        assert str(caught.value).startswith(message)
