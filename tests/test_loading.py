"""demiurgic.load: shipped models, folders, devices and dtypes; what it says where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model

import demiurgic
from demiurgic import DemiurgicForCausalLM
from demiurgic.loading import SHIPPED_MODELS
from demiurgic.tokenizer import Tokenizer

SHIPPED = SHIPPED_MODELS["tiny"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_model(vocab_size=4096).save_pretrained(tmp_path / "model")
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path / "model")
    return tmp_path / "model"


def test_the_shipped_model_completes_text() -> None:
    model, tokenizer = demiurgic.load("tiny")
    assert isinstance(model, DemiurgicForCausalLM) and isinstance(tokenizer, Tokenizer)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    ids = tokenizer.encode(["def f(x):", "import os"], add_bos=True)
    out = model.generate(ids, 8, do_sample=False)
    for row, prompt in zip(tokenizer.decode(out), ["def f(x):", "import os"], strict=True):
        assert row.startswith(prompt) and len(row) > len(prompt)
    holes = tokenizer.fim(["def add(a, b):\n    ", "x = "], ["\n", "\nprint(x)"])
    assert model.generate(holes, 4).shape == (2, max(map(len, holes)) + 4)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder(checkpoint: Path, kind: Any) -> None:
    model, tokenizer = demiurgic.load(kind(checkpoint), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and tokenizer.vocab_size == 4096
    expected = tiny_model(vocab_size=4096).to(torch.bfloat16).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())


def test_a_folder_called_tiny(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    checkpoint.rename("tiny")
    assert demiurgic.load("./tiny")[0].config.hidden_size == 32
    assert demiurgic.load("tiny")[0].config.hidden_size != 32


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("tinny", FileNotFoundError, r"no model and no folder 'tinny'; did you mean 'tiny'\? Allowed are .*'tiny'"),
        ("meta-llama/Llama-3", FileNotFoundError, r"folder 'meta-llama/Llama-3'\. Allowed .* nothing is downloaded\."),
        ("", FileNotFoundError, r"no folder ''\. Allowed are"),
        (7, TypeError, r"The model is 7; give the name of one or the path of its folder\."),
        (None, TypeError, r"The model is None; give"),
        (SHIPPED / "config.json", NotADirectoryError, r"config\.json is a file; give the folder that it lies in\."),
        (SHIPPED.parent, FileNotFoundError, r"assets has no tokenizer\.json\. Copy the one"),
    ],
)
def test_no_such_model(name: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        demiurgic.load(name)


@pytest.mark.parametrize(
    ("file", "text", "error", "words"),
    [
        ("tokenizer.json", None, FileNotFoundError, r"has no tokenizer\.json\. Copy .*from_pretrained\.$"),
        ("tokenizer.json", "{}", ValueError, r"tokenizer\.json is not a tokenizer"),
        ("config.json", None, FileNotFoundError, r"config\.json"),
        ("config.json", "[", ValueError, r"config\.json is not JSON"),
        ("model.safetensors", None, FileNotFoundError, r"holds no weights"),
        ("model.safetensors", "x", RuntimeError, r"model\.safetensors .* is not a whole safetensors file"),
    ],
)
def test_an_incomplete_folder(
    checkpoint: Path, file: str, text: str | None, error: type[Exception], words: str
) -> None:
    (checkpoint / file).unlink() if text is None else (checkpoint / file).write_text(text)
    with pytest.raises(error, match=words):
        demiurgic.load(checkpoint)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cpux"}, ValueError, r"device is 'cpux', which torch cannot use here: "),
        ({"device": "cuda:99"}, ValueError, r"device is 'cuda:99', which torch cannot use here: "),
        ({"dtype": "float31"}, ValueError, r"dtype must be float32, .* not 'float31'"),
        ({"dtype": torch.int8}, ValueError, r"dtype must be float32"),
        ({"precision": "float32"}, TypeError, r"precision"),
    ],
)
def test_devices_and_dtypes(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        demiurgic.load("tiny", **options)


def test_fim_of_lists() -> None:
    tokenizer = Tokenizer(SHIPPED)
    pairs = [("def f():\n    ", "\n"), ("", "x"), ("a", "")]
    assert tokenizer.fim(*map(list, zip(*pairs, strict=True))) == [tokenizer.fim(*pair) for pair in pairs]
    assert tokenizer.fim([], []) == []
    with pytest.raises(ValueError, match=r"1 prefixes and 2 suffixes"):
        tokenizer.fim(["a"], ["b", "c"])
    for mixed in (("a", ["b"]), (["a"], "b")):
        with pytest.raises(TypeError, match=r"two of str or two lists of str"):
            tokenizer.fim(*mixed)
