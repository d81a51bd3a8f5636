"""The benchmarks run, at a tiny size: what they print, what their JSON holds, and that it is computed as they say."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

pytest.importorskip("matplotlib")

import batching
import chart
import decode
import huge_pages
import measure
import memory
import peers
import prefill
import session
import sizes
import speculation
import table
from formats import interleaved
from torch_loop import rotate

import demiurgic
from demiurgic import DemiurgicForCausalLM
from demiurgic.engine import Generation

TINY = sizes.Size(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=97, context=600)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Size XS is tiny, what is measured of the machine takes no time, and the user's cache is not touched."""
    monkeypatch.setitem(sizes.SIZES, "XS", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (peers, decode, session, memory):
        monkeypatch.setattr(module, "read_bandwidth", lambda *_: {"small": 2e9, "huge": 4e9})
    for module in (peers, prefill):
        monkeypatch.setattr(module, "gemm_peak", lambda *_: 8e9)


def report_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    *table, last = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(last)


# --- the models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_and_memory_hold_the_same_model(dtype: str, tmp_path: Path) -> None:
    model, folder = sizes.random_model("XS", dtype), sizes.folder_of("XS", dtype, tmp_path)
    loaded = DemiurgicForCausalLM.from_pretrained(folder).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded[name]) and tensor.dtype == getattr(torch, dtype), name
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert sizes.folder_of("XS", dtype, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_step_reads_all_parameters_but_the_embedding() -> None:
    model = sizes.random_model("XS", "float32")
    assert TINY.decode_parameters == model.num_parameters() - model.model.embed_tokens.weight.numel()


@pytest.mark.parametrize("size", ["XS", "S", "M"])
def test_activations_stay_normal(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights keep the logits' spread near 3, whatever the shape; S and M with narrow layers, to be quick."""
    shape = sizes.SIZES[size]
    monkeypatch.setitem(sizes.SIZES, "XS", sizes.Size(shape.layers, 64, 4, 4, 96, vocab=500))
    model = sizes.random_model("XS", "float32")
    ids = torch.tensor(sizes.random_prompts(500, 2, 20, seed=0))
    logits = model(ids).logits
    assert 1 < logits.std() < 6


@pytest.mark.parametrize("batch", [1, 3])
def test_the_plain_loop_gives_our_tokens(batch: int) -> None:
    model = sizes.random_model("XS", "float32")
    ids = torch.tensor(sizes.random_prompts(TINY.vocab, batch, 9, seed=0))
    tokens = sizes.torch_loop(model, "XS", batch, 30).generate(ids, 20)
    ours = demiurgic.generate(model, ids, max_new_tokens=20, do_sample=False, eos_token_id=[])
    assert torch.equal(tokens, ours[:, 9:])


def test_rows_for_interleaved_rotary_give_the_same_scores() -> None:
    """llama.cpp rotates the pairs (0, 1), (2, 3), ..., so rows are put in that order: q.k must stay what it was."""
    heads, dim, x = 2, 8, torch.randn(1, 5, 12)
    angles = torch.outer(torch.arange(5.0), 10000 ** (-torch.arange(0, dim, 2) / dim))
    halves = torch.cat([angles, angles], -1)
    by_halves, by_pairs = [], []
    for weight in torch.randn(2, heads * dim, 12):
        projected = (x @ weight.T).unflatten(-1, (heads, dim)).transpose(1, 2)
        by_halves.append(rotate(projected, halves.cos(), halves.sin()))
        projected = (x @ interleaved(weight, heads).T).unflatten(-1, (heads, dim)).transpose(1, 2)
        pairs = torch.view_as_complex(projected.unflatten(-1, (-1, 2)).contiguous())
        by_pairs.append(torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2))
    torch.testing.assert_close(by_pairs[0] @ by_pairs[1].mT, by_halves[0] @ by_halves[1].mT)


# --- the machine -----------------------------------------------------------------------------------------------------


def test_bandwidth_is_measured_with_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure.read_bandwidth(2**23, 2, 0.01)
    assert 1e8 < measured["small"] < 1e13 and measured.keys() <= {"small", "huge"}
    monkeypatch.setattr(measure.shutil, "which", lambda name: None)
    without = measure.read_bandwidth(2**23, 2)
    assert 1e8 < without["small"] < 1e13 and without.keys() == {"small"}


def test_gemm_peak_counts_both_operations_of_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "timed", lambda work: 0.5 if work() is not None else 0.0)
    assert measure.gemm_peak(torch.float32, size=10) == 4000


# --- decode and prefill ----------------------------------------------------------------------------------------------


def test_decode(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "results" / "decode.json"
    decode.main(models="XS", batches="1,2", threads="1", prompt=5, new=4, rounds=2, save=file)
    table, report = report_of(capsys)
    assert json.loads(file.read_text()) == report
    assert [(row["dtype"], row["batch"]) for row in report["results"]] == [
        (dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 2)
    ]
    for row, line in zip(report["results"], table.splitlines()[1:], strict=True):
        step, reading = row["step"]["median"], row["weight_bytes"] / 2e9
        assert row["weight_bytes"] == TINY.decode_parameters * (4 if row["dtype"] == "float32" else 2)
        assert row["share_of_bandwidth"] == pytest.approx(reading / step)
        assert row["overhead"] == pytest.approx(step - reading)
        assert sum(part["seconds"] for part in row["breakdown"].values()) == pytest.approx(step)
        assert sum(part["reading"] for part in row["breakdown"].values()) == pytest.approx(reading, rel=0.01)
        assert f"{row['tokens_per_second']:.1f}" in line


def test_half_of_a_model_is_its_first_layers() -> None:
    model = sizes.random_model("XS", "float32")
    half = decode.half_of(model, TINY)
    assert half.config.num_hidden_layers == 1
    whole = dict(model.named_parameters())
    for name, parameter in half.named_parameters():
        assert parameter.data_ptr() == whole[name].data_ptr(), name


def test_prefill(capsys: pytest.CaptureFixture[str]) -> None:
    prefill.main(models="XS", dtypes="float32", lengths="3,40", batch=2, threads=1, rounds=1, save=None)
    table, report = report_of(capsys)
    for row, line, length in zip(report["results"], table.splitlines()[1:], (3, 40), strict=True):
        assert row["tokens"] == length and row["batch"] == 2
        assert row["share_of_peak"] == row["flops"] / row["seconds"]["median"] / 8e9
        assert row["ratio"] == row["torch_seconds"]["median"] / row["seconds"]["median"]
        assert f"{row['share_of_peak']:.0%}" in line


def test_operations_of_a_prompt() -> None:
    """By hand for two layers of [32 -> 32 q, 16 k, 16 v, 32 o; 3 x 48] and the head; 3 tokens see 1, 2 and 3."""
    products = 2 * 3 * 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)
    attention = 2 * 2 * 2 * (1 + 2 + 3) * 32
    assert TINY.flops(3) == products + attention + 2 * 97 * 32
    assert TINY.flops(3, rows=5) == 5 * TINY.flops(3)


# --- speculation -----------------------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("layers", [{}, {"draft_layers": 1}, {"target_layers": 7}], ids=str)
def test_speculation(layers: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    layers = {"draft_layers": 0, "target_layers": 0} | layers
    speculation.main(prompts=1, new=12, rounds=1, kinds="method,random", save=None, **layers)
    table, report = report_of(capsys)
    cells = report["results"]
    assert [(cell["kind"], cell["mode"]) for cell in cells] == [
        (kind, mode) for kind in ("method", "random") for mode in ("greedy", "sampled", "hot")
    ]
    for cell, line in zip(cells, table.splitlines()[1:], strict=True):
        assert cell["ratio"] == cell["without"] / cell["with"]
        assert 1 <= cell["tokens"] <= 12 and cell["accepted"] <= cell["drafted"]
        assert f"{cell['ratio']:.2f}" in line


def test_layers_that_change_nothing() -> None:
    model, tokenizer = demiurgic.load("tiny")
    deep = speculation.padded(model, 7)
    ids = tokenizer.encode("def add(a, b):")
    assert len(deep.model.layers) == 7
    assert deep.generate([ids], 12, seed=0).tolist() == model.generate([ids], 12, seed=0).tolist()


# --- batching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [None, 3])
def test_batching(running: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "OUTPUT_TOKENS", (2, 9))
    batching.main(
        models="XS", dtypes="float32", prompts=5, running=running, copies=4, shared=50, threads=1, rounds=1, save=None
    )
    table, report = report_of(capsys)
    (result,) = report["results"]
    uneven = result["uneven"]
    assert uneven["requests"] == 5 and uneven["running"] == (running or 5)
    decoded = uneven["full_batch_step"]["median"] / uneven["running"] * (uneven["output_tokens"] - 5)
    assert uneven["ideal"] == pytest.approx(uneven["prompts"]["median"] + decoded)
    assert uneven["times_ideal"] == uneven["total"]["median"] / uneven["ideal"]
    assert f"{uneven['times_ideal']:.2f} times the ideal" in table
    assert result["shared"]["computed_tokens"] == {"alone": 50, "copies": 53}  # the last token once more for 3 copies


def test_session(capsys: pytest.CaptureFixture[str]) -> None:
    session.main(models="XS", dtypes="float32,bfloat16", context=100, new=8, threads=1, rounds=2, save=None)
    table, report = report_of(capsys)
    for result in report["results"]:
        assert all(len(result[name]["all"]) == 2 for name in ("fresh", "turn", "tokens", "fingerprint"))
        assert result["fingerprint_bandwidth"] == result["weight_bytes"] / result["fingerprint"]["min"]
        best = (result["tokens"]["median"] + result["fingerprint"]["median"]) * 1e3
        assert f"{result['turn']['median'] * 1e3:>6.1f} ms {best:>6.1f} ms" in table
    assert table.count("of 2.0 GB/s") == 2


def test_requests_are_served_to_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model, under_way, calls = sizes.random_model("XS", "float32"), [], []

    class Watched(Generation):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            calls.append(self)
            under_way.append(sum(call.finish_reason(0) == "none" for call in calls))

    monkeypatch.setattr(batching, "Generation", Watched)
    requests = [([3, 4, 5], 2), ([6], 9), ([7, 8], 4), ([9], 1), ([10], 6)]
    batching.serve(model, requests, running=2)
    assert [len(call.tokens(0)) for call in calls] == [2, 9, 4, 1, 6]
    assert under_way == [1, 2, 2, 2, 2]


# --- peers -----------------------------------------------------------------------------------------------------------


def run_peers(tmp_path: Path, **changes: Any) -> None:
    options = {
        "models": "XS",
        "dtypes": "float32",
        "batches": "1,2",
        "contenders": "demiurgic,torch,ctranslate2",
        "rounds": 2,
        "prompt": 6,
        "new": 9,
        "prefill": "6,11",
        "threads": 1,
        "python": [],
        "work": tmp_path / "work",
        "save": tmp_path / "peers.json",
    }
    peers.main(**(options | changes))


def test_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ctranslate2.py").write_text("raise ImportError('not in this environment')")
    python = Path(demiurgic.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{python}")
    run_peers(tmp_path)
    table, report = report_of(capsys)
    assert [cell["batch"] for cell in report["cells"]] == [1, 2]
    for cell in report["cells"]:
        assert list(cell["contenders"]) == ["demiurgic", "torch"]
        assert cell["absent"] == {"ctranslate2": "ImportError: not in this environment"}
        ours, torch_loop = cell["contenders"].values()
        assert torch_loop["same_tokens"] == 9
        assert list(ours["first"]) == (["6", "11"] if cell["batch"] == 1 else ["6"])
        for name, seconds in (("step", "step"), ("call", "call")):
            times = zip(ours[seconds]["all"], torch_loop[seconds]["all"], strict=True)
            ratio = statistics.median(their / our for our, their in times)
            assert cell["ratios"][name] == {"best_peer": "torch", "ratio": ratio, "to": {"torch": ratio}}
        rates = [cell["weight_bytes"] / step for step in ours["step"]["all"]]
        reads = [read[ours["pages"]] for read in cell["read_by_round"]]
        assert len(rates) == cell["rounds"]
        shares = [rate / read for rate, read in zip(rates, reads, strict=True)]
        assert ours["share_of_bandwidth"] == statistics.median(shares)
    assert table.count("ctranslate2  absent: ImportError: not in this environment") == 2
    assert "geometric mean of 2 cells" in table

    chart.main(results=tmp_path / "peers.json", out=tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")

    run_peers(
        tmp_path, batches="2", contenders="demiurgic", rounds=1
    )  # replaces a cell of the file and keeps the other
    assert [(cell["batch"], cell["rounds"]) for cell in report_of(capsys)[1]["cells"]] == [(1, 2), (2, 1)]


def test_contenders_are_loaded_for_their_turns_where_memory_is_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "available_memory", lambda: 0)
    run_peers(tmp_path, batches="1", contenders="demiurgic", rounds=1)
    _, report = report_of(capsys)
    assert len(report["cells"][0]["contenders"]["demiurgic"]["call"]["all"]) == 1
    assert report["cells"][0]["ratios"] == {}


def test_a_process_that_ends_is_an_absence(tmp_path: Path) -> None:
    contender = peers.Contender("torch", "/bin/false", 1, tmp_path / "log")
    with pytest.raises(peers.AbsentError, match=r"^its process ended with 1; its output is in .*log$"):
        contender.ask(do="load")
    contender.close()


def test_a_model_that_cannot_be_converted_is_an_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.CONTENDERS["torch"], "format", "stone", raising=False)
    cell = peers.Cell("XS", "float32", batch=1, prompt=3, new=2, prefill=(3,))
    names = ["torch", "demiurgic"]
    field = peers.Field(cell, dict.fromkeys(names, peers.sys.executable), 1, tmp_path)
    field.load(names)
    field.close()
    assert field.names == ["demiurgic"]
    reason = "the model could not be converted: formats.py FORMAT SOURCE TARGET; FORMAT is one of gguf, openvino, onnx,"
    assert field.absent["torch"].startswith(reason)


def test_means(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell_of({"demiurgic": 1.0, "hf": step}) for step in (2.0, 8.0)]
    peers.print_means(cells)
    assert (
        "step: 4.00 times the best peer in the geometric mean of 2 cells, 2.00 at the least" in capsys.readouterr().out
    )
    peers.print_means([*cells, cell_of({"demiurgic": -1.0, "hf": 1.0})])
    assert "step: no mean, since a step came out negative" in capsys.readouterr().out


def cell_of(steps: Mapping[str, float | list[float]], same: int = 9) -> dict[str, Any]:
    """A cell of contenders that took so long for everything; or so long in each round."""
    seconds = {name: measure.summary(step if isinstance(step, list) else [step]) for name, step in steps.items()}
    rows = {
        name: {
            "call": summary,
            "step": summary,
            "first": {"6": summary},
            "tokens_per_second": 1.0,
            "bytes_per_second": 1.0,
            "share_of_bandwidth": 1.0,
            "same_tokens": same,
        }
        for name, summary in seconds.items()
    }
    cell: dict[str, Any] = dict.fromkeys(
        ("batch", "prompt", "new", "threads", "rounds", "weight_bytes", "gemm_peak"), 9
    )
    cell |= {"model": "XS", "dtype": "float32", "read_bandwidth": {"small": 1.0}, "contenders": rows, "absent": {}}
    return cell | {"ratios": peers.ratios(cell), "machine": {"cpu": "a CPU"}}


def test_ratios_are_to_the_best_peer() -> None:
    cell = cell_of({"demiurgic": 2.0, "hf": 8.0, "openvino": 3.0, "torch": 6.0})
    to = {"hf": 4.0, "openvino": 1.5, "torch": 3.0}
    assert cell["ratios"]["step"] == {"best_peer": "openvino", "ratio": 1.5, "to": to}
    assert peers.ratios(cell_of({"demiurgic": 2.0})) == {} == peers.ratios(cell_of({"hf": 2.0}))


def test_ratios_are_of_the_median_round() -> None:
    # Two rounds on fast memory and one on slow; of the peer it was the other way round.
    cell = cell_of({"demiurgic": [1.0, 1.0, 2.0], "hf": [1.5, 3.0, 3.0]})
    assert cell["ratios"]["step"]["ratio"] == 1.5
    assert cell["contenders"]["hf"]["step"]["median"] / cell["contenders"]["demiurgic"]["step"]["median"] == 3.0


def test_other_tokens_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    peers.print_cell(cell_of({"demiurgic": 1.0, "hf": 1.0}, same=8))
    assert "DISAGREES" not in capsys.readouterr().out
    peers.print_cell(cell_of({"demiurgic": 1.0, "hf": 1.0}, same=7))
    assert "DISAGREES: hf gives other tokens than demiurgic after 7" in capsys.readouterr().out
    assert [peers.common_prefix([1, 2, 3], other) for other in ([1, 2, 3], [1, 2, 4], [0, 2, 3])] == [3, 2, 0]


def test_chart_is_relative_to_the_best_peer() -> None:
    cell = cell_of({"demiurgic": 2.0, "hf": 8.0, "openvino": 3.0})
    assert chart.relative(cell, "demiurgic", "step") == pytest.approx(1.5)
    assert chart.relative(cell, "openvino", "first 6") == pytest.approx(1)
    assert chart.relative(cell, "llamacpp", "step") is None
    assert chart.speed(cell, "hf", "first 6") == 9 * 6 / 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": "XXL"}, "--models names 'XXL', but knows only XS, S, M, L."),
        ({"dtypes": ""}, "--dtypes is empty"),
        ({"batches": "1,0"}, "--batches is '1,0', but must be integers from 1"),
        ({"prefill": "many"}, "--prefill is 'many', but must be integers"),
        ({"python": ["vllm=/bin/python"]}, "--python names 'vllm', but knows only demiurgic, hf,"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        run_peers(tmp_path, **wrong)
    assert message in str(caught.value)


def test_pythons_of_the_contenders() -> None:
    pythons = peers.pythons_of(["/peers/python", "hf=/hf/python"], ["demiurgic", "hf", "torch"])
    assert pythons == {"demiurgic": peers.sys.executable, "hf": "/hf/python", "torch": "/peers/python"}


# --- huge pages ------------------------------------------------------------------------------------------------------


def test_memory_is_read_again_and_again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([{"small": 2e9}, {"small": 6e9, "huge": 7e9}, {"small": 3e9}])
    monkeypatch.setattr(memory, "read_bandwidth", lambda *_: next(rates))
    times = iter([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])  # the beginning; after each reading and before the next
    monkeypatch.setattr(memory.time, "perf_counter", lambda: next(times))
    memory.main(seconds=3, megabytes=4, threads=1, save=None)
    printed, report = report_of(capsys)
    assert [(r["at"], r["small"]) for r in report["readings"]] == [(1.0, 2e9), (2.0, 6e9), (4.0, 3e9)]
    assert "4 KiB pages: 2.0 to 6.0 GB/s, 3.0 in the median" in printed


def test_huge_pages_reports_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    huge_pages.main(models="XS", dtypes="float32", batches="1,2", new=3, rounds=1, save=None)
    table, report = report_of(capsys)
    assert "ratio" in table and [row["batch"] for row in report["results"]] == [1, 2]
    for row in report["results"]:
        assert row["step"].keys() == {"small", "huge"} and row["huge_bytes"] <= row["bytes"]


def test_collapsing_changes_no_value() -> None:
    tensor = torch.arange(3 << 20, dtype=torch.float32)  # 12 MiB: some whole huge pages, wherever it begins
    cost = huge_pages.collapse([tensor])
    assert cost["bytes"] == 12 << 20 and cost["huge_bytes"] % huge_pages.HUGE == 0
    assert torch.equal(tensor, torch.arange(3 << 20, dtype=torch.float32))


# --- the documents ---------------------------------------------------------------------------------------------------


def test_the_table_in_the_document_is_made_of_the_saved_results() -> None:
    cells = json.loads(table.RESULTS.read_text(encoding="utf-8"))["cells"]
    document = (table.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert table.table(cells) in document
