"""The tokenizer: what goes in comes out, and user text never becomes a special token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

import demiurgic
from demiurgic.tokenizer import Tokenizer

SHIPPED = Path(demiurgic.__file__).parent / "assets" / "tiny"
PAD, BOS, EOS, PREFIX, MIDDLE, SUFFIX = range(6)


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer(SHIPPED)


def write_tokenizer(folder: Path, special: list[str]) -> Path:
    """A byte-level tokenizer without merges whose first ids are `special`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(special)
    library.save(str(folder / "tokenizer.json"))
    return folder


def test_shipped_ids_agree_with_its_config(shipped: Tokenizer) -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    assert shipped.vocab_size == config["vocab_size"] == 4096
    assert (shipped.pad_token_id, shipped.bos_token_id, shipped.eos_token_id) == (PAD, BOS, EOS)
    assert shipped.fim_tokens == config["fim_tokens"] == {"prefix": PREFIX, "middle": MIDDLE, "suffix": SUFFIX}


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_round_trip(shipped: Tokenizer, text: str) -> None:
    ids = shipped.encode(text)
    assert shipped.decode(ids, skip_special_tokens=False) == text
    assert all(SUFFIX < i < shipped.vocab_size for i in ids)


SPECIAL_LOOKING = ["<pad>", "<bos>", "<eos>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "a<eos>b", " <bos> "]


@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_text_never_becomes_a_special_token(shipped: Tokenizer, text: str) -> None:
    assert min(shipped.encode(text)) > SUFFIX
    assert shipped.decode(shipped.encode(text)) == text
    assert min(shipped.fim(text, text)[2:-1][: len(shipped.encode(text))]) > SUFFIX


def test_batch_is_its_rows(shipped: Tokenizer) -> None:
    texts = ["def f():", "", "ünï\n\tcode 日本", "x = 1\n"]
    rows = shipped.encode(texts)
    assert rows == [shipped.encode(text) for text in texts]
    assert shipped.encode(texts, add_bos=True) == [[BOS, *row] for row in rows]
    assert shipped.decode(rows) == texts
    assert (shipped.encode([]), shipped.decode([]), shipped.encode("")) == ([], "", [])


def test_decode_takes_tensors_and_skips_special_tokens(shipped: Tokenizer) -> None:
    ids = [BOS, *shipped.encode("x = 1"), EOS, PAD]
    assert shipped.decode(torch.tensor(ids)) == "x = 1"
    assert shipped.decode(torch.tensor([ids, ids])) == ["x = 1", "x = 1"]
    assert shipped.decode(ids, skip_special_tokens=False) == "<bos>x = 1<eos><pad>"


def test_half_a_character_decodes_to_the_replacement_character(shipped: Tokenizer) -> None:
    ids = shipped.encode("日")
    assert len(ids) > 1 and "\ufffd" in shipped.decode(ids[:1])


def test_fim_layout(shipped: Tokenizer) -> None:
    before, after = shipped.encode(["def f(x):\n", "\n    return y"])
    assert shipped.fim("def f(x):\n", "\n    return y") == [BOS, PREFIX, *before, SUFFIX, *after, MIDDLE]
    assert shipped.fim("", "") == [BOS, PREFIX, SUFFIX, MIDDLE]


NAMINGS = [
    # (special tokens in id order, config.json, pad, bos, eos ids, fim)
    (["<s>", "</s>"], None, None, 0, [1], None),
    (["<s>", "</s>"], {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": [0, 1]}, 1, None, [0, 1], None),
    (["<s>", "</s>"], {"fim_tokens": {"prefix": 3, "middle": 4, "suffix": 5}}, None, 0, [1], None),  # ids of text
    (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], None, None, None, [], (0, 2, 1)),
    (["<a>", "<b>", "<c>"], {"fim_tokens": {"prefix": 0, "middle": 1, "suffix": 2}}, None, None, [], (0, 1, 2)),
    (["a"], {"eos_token_id": None}, None, None, [], None),
]


@pytest.mark.parametrize(("special", "config", "pad", "bos", "eos", "fim"), NAMINGS)
def test_special_ids_of_other_folders(tmp_path: Path, special, config, pad, bos, eos, fim) -> None:  # type: ignore[no-untyped-def]
    write_tokenizer(tmp_path, special)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (pad, bos, eos)
    assert tokenizer.eos_token_id == (eos[0] if eos else None)
    assert tokenizer.fim_tokens == (
        None if fim is None else dict(zip(("prefix", "middle", "suffix"), fim, strict=True))
    )
    assert tokenizer.decode(tokenizer.encode("print(1)")) == "print(1)"


def test_bos_and_fim_are_refused_where_there_are_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, ["<x>"]))
    with pytest.raises(ValueError, match="no beginning-of-sequence id"):
        tokenizer.encode("x", add_bos=True)
    with pytest.raises(ValueError, match="no fill-in-the-middle tokens"):
        tokenizer.fim("a", "b")


WRONG_CALLS = [
    (lambda t: t.decode([4096]), IndexError, "below 4096; 4096 was given"),
    (lambda t: t.decode([[5, -1]]), IndexError, "at least 0 and below 4096; -1"),
    (lambda t: t.decode([1.5]), TypeError, "integer token ids, not 1.5"),
    (lambda t: t.decode([True]), TypeError, "integer token ids, not True"),
    (lambda t: t.decode("ab"), TypeError, "integer token ids, not 'a'"),
    (lambda t: t.encode(["a", 3]), TypeError, "not a list with int in it"),
    (lambda t: t.encode(b"ab"), TypeError, r"not bytes\."),
    (lambda t: t.encode(None), TypeError, r"not NoneType\."),
    (lambda t: t.encode("a\ud800"), ValueError, "lone surrogate at position 1"),
    (lambda t: t.fim("a", None), TypeError, "not a list with NoneType in it"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS)
def test_wrong_calls_are_refused_in_a_sentence(shipped: Tokenizer, call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call(shipped)


def test_folders_without_a_readable_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer of the tokenizers library"):
        Tokenizer(tmp_path)
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path)
    for broken, message in [("{", "is not JSON"), ("[]", "must hold a JSON object, not a list")]:
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            Tokenizer(tmp_path)
