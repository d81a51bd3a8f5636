"""benchmarks/cache.py: both contenders give the same tokens, and the last line is the report."""

from __future__ import annotations

import json
import statistics
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import typer
from models import tiny_model

FILE = Path(__file__).parents[1] / "benchmarks" / "cache.py"


@pytest.fixture(scope="module")
def cache() -> ModuleType:
    spec = spec_from_file_location("cache_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report(cache: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cache.CONFIGS, "10m", lambda: tiny_model(eos_token_id=list(range(97))).config)
    cache.main(config="10m", new="3,7", quick=False, device="cpu", dtype="float32")
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [row["new_tokens"] for row in report["results"]] == [3, 7]
    for row, line in zip(report["results"], table[-2:], strict=True):
        loop, generate = row["loop"], row["generate"]
        assert row["same_tokens"] == row["new_tokens"] and f"{row['ratio']:.1f}x" in line
        assert row["ratio"] == loop["median"] / generate["median"]
        for side in (loop, generate):
            assert len(side["seconds"]) == 3 and side["median"] == statistics.median(side["seconds"])
            assert side["min"] == min(side["seconds"]) <= side["max"] == max(side["seconds"])
            assert side["tokens_per_second"] == row["new_tokens"] / side["median"]
    turns = [line.split(", ")[2].split(":")[0] for line in table if " of 3, " in line]
    assert turns == ["loop", "generate"] * 6
    assert {"machine", "commit", "torch", "dtype", "num_key_value_heads"} <= report.keys()


@pytest.mark.parametrize("wrong", [{"config": "3m"}, {"new": "0"}, {"new": "a"}, {"new": ""}, {"dtype": "int8"}])
def test_wrong_options(cache: ModuleType, wrong: dict[str, str]) -> None:
    with pytest.raises(typer.BadParameter, match=f"--{next(iter(wrong))} is "):
        cache.main(**({"config": "10m", "new": "1", "quick": True, "device": "cpu", "dtype": "float32"} | wrong))
