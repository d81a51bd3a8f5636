"""benchmarks/gpu.py on the CPU: the whole way of its figures, and that what fails costs nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import pytest
import sizes
import torch
import typer
from compiled_loop import CompiledLoop
from gpu_contenders import CONTENDERS, OURS

import demiurgic

TINY = sizes.Size(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=97, context=600)
PART = gpu.Part("XS", "float32", 2, 6, 5, 2, "cpu", compiles=False, contenders=[OURS, "compiled"])


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sizes.SIZES, "XS", TINY)


def measured(part: gpu.Part, deadline: float = float("inf")) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return gpu.measure_part(part, told.append, deadline), told


# --- the contenders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_a_static_cache_gives_the_same_tokens(batch: int) -> None:
    model = sizes.random_model("XS", "float32")
    weights, config = dict(model.named_parameters()), sizes.llama_config(TINY, "float32")
    loop = CompiledLoop({k: v.detach() for k, v in weights.items()}, config, batch, context=40, compiles=False)
    for length in (9, 4):  # what an earlier call has left in the cache is not seen
        ids = torch.tensor(sizes.random_prompts(TINY.vocab, batch, length, seed=length))
        ours = demiurgic.generate(model, ids, max_new_tokens=20, do_sample=False, eos_token_id=[])
        assert torch.equal(loop.generate(ids, 20), ours[:, length:])


def test_all_contenders_take_turns_and_agree() -> None:
    pytest.importorskip("transformers")
    part = replace(PART, contenders=list(CONTENDERS))
    result, told = measured(part)
    assert result["absent"] == {} and list(result["contenders"]) == list(CONTENDERS)
    assert [each["in_turn"] for each in told] == [*list(CONTENDERS) * 3, None] and told[-1] == result
    for row in result["contenders"].values():
        assert row["same_tokens"] == 5 and len(row["whole"]["all"]) == 2
        steps = [(w - f) / 4 for w, f in zip(row["whole"]["all"], row["first"]["all"], strict=True)]
        assert row["step"]["all"] == steps
        assert row["tokens_per_second"] == 2 * 5 / row["whole"]["median"]


def test_uneven_requests() -> None:
    pytest.importorskip("transformers")
    part = replace(PART, batch=3, prompt=None, rounds=1, contenders=list(gpu.UNEVEN))
    assert len({len(prompt) for prompt in part.prompts()}) == 3
    result, _ = measured(part)
    assert list(result["contenders"]) == [OURS, "hf-batching"]
    assert all(row["same_tokens"] == 5 and "step" not in row for row in result["contenders"].values())


def test_other_tokens_are_counted() -> None:
    runners = gpu.Field(PART, float("inf"))
    runners.tokens = {OURS: [[1, 2, 3], [4, 5, 6]], "hf": [[1, 2, 9], [4, 5, 6]]}
    assert (runners.same_tokens("hf"), runners.same_tokens(OURS)) == (3, 3)
    runners.tokens["hf"][1] = [0, 5, 6]
    assert runners.same_tokens("hf") == 2
    del runners.tokens[OURS]
    assert runners.same_tokens("hf") is None


# --- what fails ------------------------------------------------------------------------------------------------------


class Failing:
    """Gives tokens as often as it is told, then fails."""

    def __init__(self, error: Exception, calls: int) -> None:
        self.error, self.calls = error, calls

    def __call__(self, *_: Any, **__: Any) -> Failing:
        return self

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return [[0] * new for _ in prompts]


@pytest.mark.parametrize("calls", [0, 1, 3, 5])  # in the warm-up, in the first turn, in the second
def test_a_contender_that_fails_is_absent_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    monkeypatch.setitem(CONTENDERS, "hf", Failing(ValueError("no\nfurther"), calls))
    result, _ = measured(replace(PART, contenders=["hf", OURS]))
    assert result["absent"] == {"hf": "ValueError: no"} and len(result["contenders"][OURS]["whole"]["all"]) == 2
    assert ("hf" in result["contenders"]) == (calls == 5)  # it has had a turn


def test_what_there_was_before_a_fault_of_the_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "hf", Failing(torch.AcceleratorError("CUDA error: an illegal access"), 2))
    told: list[dict[str, Any]] = []
    with pytest.raises(torch.AcceleratorError):
        gpu.measure_part(replace(PART, contenders=[OURS, "hf", "compiled"]), told.append, float("inf"))
    assert told[-1]["in_turn"] == "hf" and told[-1]["absent"]["hf"].endswith("CUDA error: an illegal access")
    assert list(told[-1]["contenders"]) == [OURS]


def test_the_part_goes_on_without_whom_its_process_ended_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def told(part: gpu.Part, seconds: float) -> dict[str, Any]:
        asked.append(part.contenders)
        if "hf" in part.contenders:
            return {"contenders": {}, "absent": {"hf": "a fault"}, "in_turn": "hf", "ended": "with 1"}
        if "hf-static" in part.contenders:
            return {"contenders": {}, "absent": {}, "in_turn": "hf-static", "ended": "with -11"}
        return {"contenders": {OURS: 1}, "absent": {"compiled": "slow"}, "in_turn": None}

    monkeypatch.setattr(gpu, "told_by_process", told)
    result = gpu.measured(replace(PART, contenders=[OURS, "hf", "hf-static", "compiled"]), time.monotonic() + 60)
    assert [len(names) for names in asked] == [4, 3, 2]
    assert result == {
        "contenders": {OURS: 1},
        "absent": {"hf": "a fault", "hf-static": "with -11", "compiled": "slow"},
    }


def test_a_process_that_ends_is_told_of() -> None:
    told = gpu.told_by_process(replace(PART, model="none"), seconds=60)
    assert told == {"contenders": {}, "absent": {}, "in_turn": OURS, "ended": "its process ended with 1"}


def test_turns_end_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    result, _ = measured(PART, deadline=2)  # two warm-ups and the first turn of the first
    assert list(result["contenders"]) == [OURS] and len(result["contenders"][OURS]["whole"]["all"]) == 1
    assert result["absent"] == {"compiled": "the time was up"}


# --- the tests, the card, the command --------------------------------------------------------------------------------


def test_the_marked_tests_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "import pytest\npytestmark = pytest.mark.cuda\n"
    (tmp_path / "test_good.py").write_text(head + "def test_good(): pass\n")
    (tmp_path / "test_plain.py").write_text("raise RuntimeError('not marked')\n")
    (tmp_path / "test_lacking.py").write_text(head + "from no_such_package import x\n")
    ran = gpu.run_tests(tmp_path, torch.device("cpu"), seconds=100)
    assert ran["exit_code"] == 0 and "1 passed" in ran["summary"]
    assert ran["left_out"] == {"test_lacking.py": ["no_such_package"]}
    (tmp_path / "test_bad.py").write_text(head + "def test_bad(): assert 0\n")
    ran = gpu.run_tests(tmp_path, torch.device("cpu"), seconds=100)
    assert ran["exit_code"] == 1 and len(ran["failed"]) == 1 and "test_bad" in ran["failed"][0]
    (tmp_path / "test_bad.py").write_text(head + "import time\ndef test_bad(): time.sleep(100)\n")
    ran = gpu.run_tests(tmp_path, torch.device("cpu"), seconds=5)
    assert ran["exit_code"] is None and ran["summary"] == "stopped after 5 s"
    assert "left out: test_lacking.py, which needs no_such_package" in capsys.readouterr().out


def test_bandwidth_counts_both_ways_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e8 < gpu.device_bandwidth(torch.device("cpu"), seconds=0.01) < 1e13
    monkeypatch.setattr(gpu, "timed", lambda work: 0.5 if work() is not None else 0.0)
    assert gpu.device_bandwidth(torch.device("cpu"), seconds=0.1) == 2 * 2**26 / 0.5


def run(tmp_path: Path, **changes: Any) -> None:
    options: dict[str, Any] = {"models": "XS", "dtypes": "float32", "batches": "1,2", "contenders": f"{OURS},compiled"}
    options |= {"prompt": 6, "new": 8, "requests": 2, "rounds": 1, "minutes": 5.0, "device": "cpu", "tests": False}
    gpu.main(**(options | {"compiles": False, "save": tmp_path / "gpu.json"} | changes))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With processes of its own, which know XS as it is."""
    run(tmp_path, batches="2")
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert json.loads((tmp_path / "gpu.json").read_text()) == report and report["left_out"] == []
    equal, uneven = report["parts"]
    assert (list(equal["contenders"]), list(uneven["contenders"])) == ([OURS, "compiled"], [OURS])
    share = equal["weight_bytes"] / equal["contenders"][OURS]["step"]["median"] / report["bandwidth"]
    table = "\n".join(lines)
    assert f"{share:.0%} of the bandwidth" in table and "times ours; 8 tokens the same" in table


def test_what_does_not_fit_into_the_minutes_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"contenders": {}, "absent": {OURS: "why"}}
    monkeypatch.setattr(gpu, "measured", lambda part, deadline: row)
    clock = iter([0.0, 1.0, 1e9, 1e9])
    monkeypatch.setattr(gpu, "device_bandwidth", lambda _: 2e9)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    run(tmp_path)
    out = capsys.readouterr().out
    assert "demiurgic   absent: why" in out
    assert "XS float32 batch 2: left out" in out and "XS float32 2 requests: left out" in out
    assert len(json.loads(out.splitlines()[-1])["parts"]) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "--device is 'gpu', which torch cannot use here"),
        ({"contenders": "vllm"}, "--contenders names 'vllm', but knows only demiurgic, compiled, hf, hf-static"),
        ({"models": "XXL"}, "--models names 'XXL'"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        run(tmp_path, **wrong)
    assert message in str(caught.value)
