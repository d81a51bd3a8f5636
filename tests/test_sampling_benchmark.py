"""benchmarks/sampling.py: the report and its lines, cells that stay, a sampler by sorting that draws as ours does."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from sampler_oracle import Distribution, edited, filtered

from demiurgic import GenerationConfig

FILE = Path(__file__).parents[1] / "benchmarks" / "sampling.py"
RUN = {"dtypes": "float32", "model": "small", "prompt": 5, "new": 4, "rounds": 2}


@pytest.fixture(scope="module")
def sampling() -> ModuleType:
    sys.path.insert(0, str(FILE.parent))
    try:
        spec = spec_from_file_location("sampling_benchmark", FILE)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FILE.parent))
    module.SIZES["small"] = module.SMALL
    return module


def test_report(sampling: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "report.json"
    sampling.main(vocabs="60,70", batches="1,2", save=save, **RUN)
    sampling.main(vocabs="70", batches="2,3", save=save, **RUN)
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report == json.loads(save.read_text())
    cells = [(cell["vocab"], cell["batch"]) for cell in report["results"]]
    assert cells == [(60, 1), (60, 2), (70, 1), (70, 2), (70, 3)]
    for cell, line in zip(report["results"][-2:], lines[-2:], strict=True):
        assert cell["share"] == cell["sampler"] / (cell["greedy"] + cell["sampler"])
        assert cell["difference"] == cell["everything"] - cell["greedy"]
        assert f"{1e6 * cell['sampler']:.0f} us = {100 * cell['share']:.2f} %" in line
        assert {"torch"} <= cell["others"].keys() and len(cell["others"]["torch"]["all"]) == 8
    assert {"machine", "commit", "torch", "options"} <= report.keys()


@pytest.mark.parametrize("wrong", [{"vocabs": "0"}, {"batches": ""}, {"dtypes": "int8"}, {"model": "XXL"}])
def test_wrong_options(sampling: ModuleType, wrong: dict[str, str]) -> None:
    with pytest.raises(typer.BadParameter, match=f"--{next(iter(wrong))} "):
        sampling.main(**({"vocabs": "60", "batches": "1", "save": None} | RUN | wrong))


def test_the_plain_function_draws_from_the_same_distribution(sampling: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, prompt = torch.randn(60, generator=generator) * 3, [5, 6, 5, 7]
    drawn = sampling.by_sorting(logits.expand(20000, -1), torch.tensor(prompt).expand(20000, -1))
    config = GenerationConfig(**sampling.OPTIONS["everything"])
    masses = Distribution(filtered(edited(logits.numpy(), prompt, len(prompt), config), config)).masses
    expected = torch.tensor(masses) / masses.sum()
    frequencies = torch.bincount(drawn[:, 0], minlength=60) / 20000
    assert set(frequencies.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())
    torch.testing.assert_close(frequencies, expected.float(), rtol=0, atol=0.02)
