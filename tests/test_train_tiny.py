"""The example that trains the shipped model: its data, its resumption, and generation between its steps."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import demiurgic
from demiurgic.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
BOS, EOS, PREFIX, MIDDLE, SUFFIX = range(1, 6)


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


train_tiny = load_example("train_tiny")
prepare_tiny_data = load_example("prepare_tiny_data")

MODULE = '''# Copyright of somebody
"""A module."""

import os


def add_{i}(first, second):
    """Add two numbers.

    The second paragraph of a
    docstring is left out.
    """
    total = first + second
    print("{i}", total)
    return total


class Box_{i}:
    def get(self, key, default={i}):
        if key in self.items:
            return self.items[key]
        return default
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "sources").mkdir()
    for i in range(12):
        (folder / "sources" / f"module_{i}.py").write_text(MODULE.format(i=i))
    (folder / "sources" / "two_spaces.py").write_text("def f(x):\n  y = x\n  z = y\n  return z\n" * 4)
    (folder / "sources" / "broken.py").write_text("def f(:\n    pass\n" * 9)
    (folder / "held_out.txt").write_text("module_3.py\nmodule_5.py\n")
    prepare_tiny_data.prepare(
        folder / "data", sources=folder / "sources", held_out=folder / "held_out.txt", vocab_size=300
    )
    return folder / "data"


def make_trainer(data: Path, seed: int = 0) -> Any:
    """A trainer of a model of 20 thousand parameters; the same for the same seed."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(data)
    config = demiurgic.DemiurgicConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    settings = train_tiny.Settings(8, 3, 2, 2, 48, 5e-3, 2e-3, seed, bfloat16=False, compiled=False)
    stream = train_tiny.DocumentStream(train_tiny.read_texts(data / "train.jsonl"), tokenizer, seed)
    return train_tiny.Trainer(demiurgic.DemiurgicForCausalLM(config), stream, settings)


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prepared_data_is_clean_and_holds_modules_out(data: Path) -> None:
    train, held_out = rows_of(data / "train.jsonl"), rows_of(data / "held_out.jsonl")
    assert {row["module"] for row in held_out} == {"module_3.py", "module_5.py"}
    assert {row["module"] for row in train} == {f"module_{i}.py" for i in range(12)} - {"module_3.py", "module_5.py"}
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}
    texts = [row["text"] for row in train]
    assert any(text.startswith("def get(self, key") for text in texts), "methods come dedented"
    assert not any("second paragraph" in text or "Copyright" in text for text in texts)
    assert len(texts) == len(set(texts))


LICENCES = [
    ("BSD-3-Clause", True),
    ("MIT", True),
    ("Apache Software License", True),
    ("LGPL-2.1-only", False),
    ("MIT OR GPL-3.0", False),
    ("Mozilla Public License 2.0 (MPL 2.0)", False),
    ("none stated", False),
]


@pytest.mark.parametrize(("licence", "permissive"), LICENCES)
def test_licences(licence: str, permissive: bool) -> None:
    assert prepare_tiny_data.is_permissive(licence) is permissive


def test_samples_hold_the_text_they_were_made_of(data: Path) -> None:
    tokenizer, text = Tokenizer(data), MODULE.format(i=7)
    for seed in range(200):
        chance = random.Random(seed)
        plain = train_tiny.plain_sample(text, tokenizer, chance)
        assert plain[0] == BOS and tokenizer.decode(plain) == text
        sample = train_tiny.fim_sample(text, tokenizer, chance)
        assert sample[:2] == [BOS, PREFIX]
        suffix_at, middle_at = sample.index(SUFFIX), sample.index(MIDDLE)
        prefix, suffix = tokenizer.decode(sample[2:suffix_at]), tokenizer.decode(sample[suffix_at + 1 : middle_at])
        assert prefix + tokenizer.decode(sample[middle_at + 1 :]) + suffix == text
        assert sample[: middle_at + 1] == tokenizer.fim(prefix, suffix)


def test_long_texts_give_a_window_of_whole_first_line(data: Path) -> None:
    text = "".join(f"line_{i} = {i}\n" for i in range(500))
    for seed in range(50):
        window = Tokenizer(data).decode(train_tiny.fim_sample(text, Tokenizer(data), random.Random(seed)))
        assert 0 < len(window) <= train_tiny.FIM_CHARS


def test_half_of_the_documents_are_fill_in_the_middle(data: Path) -> None:
    stream = make_trainer(data).stream
    ids = stream.next_batch(600, 64).flatten().tolist()
    documents, fims = ids.count(BOS), ids.count(PREFIX)
    assert documents > 200 and 0.4 < fims / documents < 0.6


RATES = [(0, 0.5), (1, 1.0), (4, 1.0), (5, 1.0), (6, 2 / 3), (7, 1 / 3)]


@pytest.mark.parametrize(("step", "rate"), RATES)
def test_learning_rate(step: int, rate: float) -> None:
    settings = train_tiny.Settings(8, 3, 2, 2, 48, 5e-3, 2e-3, 0, bfloat16=False, compiled=False)
    assert train_tiny.learning_rate(step, settings) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("ids", "share"), [([1, 2, 3, 4, 5], 0), ([1] * 8, 0.8), ([1, 2, 3], 0), ([1, 2, 3, 4] * 2, 0.2)]
)
def test_repetition(ids: list[int], share: float) -> None:
    assert train_tiny.repetition(ids) == pytest.approx(share)


def test_generating_between_steps_changes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, showing = make_trainer(data), make_trainer(data)
    losses = [plain.train_step() for _ in range(6)]
    shown = []
    for _ in range(6):
        shown.append(showing.train_step())
        assert 0 <= train_tiny.show_samples(showing.model, showing.stream.tokenizer, showing.step) <= 1
    assert shown == losses
    assert capsys.readouterr().out.count("def fibonacci(n):") == 6
    for one, other in zip(plain.model.parameters(), showing.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole = make_trainer(data)
    losses = [whole.train_step() for _ in range(8)]
    first = make_trainer(data)
    resumed_losses = [first.train_step() for _ in range(3)]
    first.save(tmp_path / "checkpoint.pt")
    second = make_trainer(data, seed=0)
    torch.manual_seed(99)
    second.load(tmp_path / "checkpoint.pt")
    resumed_losses += [second.train_step() for _ in range(5)]
    assert resumed_losses == losses
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_interrupt_saves_between_steps(data: Path, tmp_path: Path) -> None:
    trainer, before = make_trainer(data), signal.getsignal(signal.SIGINT)
    held_out = trainer.stream.next_batch(2, 48)
    every = {"log_every": 1, "evaluate_every": 0, "sample_every": 0, "save_every": 0}
    rows = train_tiny.run(trainer, held_out, tmp_path, minutes=1.0, **every)
    next(rows), next(rows)
    signal.raise_signal(signal.SIGINT)
    assert list(rows) == []
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == trainer.step == 2
    assert signal.getsignal(signal.SIGINT) == before


def test_the_command_trains_resumes_and_exports(data: Path, tmp_path: Path) -> None:
    size = {"batch": 2, "length": 48, "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2}
    every = {"log_every": 1, "evaluate_every": 4, "sample_every": 4, "save_every": 4}
    for steps in (4, 6):
        train_tiny.train(data, tmp_path, steps=steps, decay=2, warmup=1, rate=5e-3, context=256, **size, **every)
    log = rows_of(tmp_path / "log.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert {"held_out_loss", "repetition"} <= log[3].keys() and log[5].keys() == log[3].keys()
    model = demiurgic.DemiurgicForCausalLM.from_pretrained(tmp_path / "model")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert Tokenizer(tmp_path / "model").vocab_size == model.vocab_size == 300
    assert model.generate([[BOS, 10, 11]], 4, do_sample=False, eos_token_id=[]).shape == (1, 7)
