"""Our engine beside others on the same random weights at equal precision, interleaved in one run.

    python benchmarks/peers.py --python peers/bin/python                          # S, M; both types; batch 1, 8
    python benchmarks/peers.py --models XS --dtypes float32 --rounds 1 --new 16   # is it right?
    python benchmarks/peers.py --save benchmarks/results/peers.json               # cells of earlier runs in it stay

The peers come with `pip install -r benchmarks/requirements.txt`, best into an environment of their own (--python).

Each engine runs in a process of its own (contenders.py), with the model in its own format (formats.py); all are loaded,
and all but the one that is timed are stopped. A cell is a model, a type and a batch. In each round every engine in turn
reads a prompt untimed, to get going again, then one of each length and gives one token, then reads a prompt and gives
`--new` tokens, greedily, EOS off; every round has other prompts. A step of decoding is (whole call - first token) /
(new - 1). Right before and after our own turn each round measures how fast the machine reads as many bytes as the
weights have, and at its end how fast torch multiplies matrices. What a shared machine reads changes from one half
minute to the next, so a share of the bandwidth is a round's rate of reading weights over the mean of its two, and a
ratio another's time in a round over ours in it; each in the median round.

Every engine's tokens are compared with ours: in float32 half of the rows, at least, must agree for 8 tokens or more, or
the run says so. (A near-tie of two logits can end a row's agreement anywhere.)
An engine that is missing or cannot do a cell is listed with the reason. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from contenders import CONTENDERS
from measure import (
    chosen,
    counts,
    finish,
    gemm_peak,
    read_bandwidth,
    summary,
    surroundings,
    work_folder,
)
from sizes import DTYPES, SIZES, folder_of, random_prompts

OURS = "demiurgic"
SURE_TOKENS = 8  # that must agree in float32
HERE = Path(__file__).parent


class AbsentError(Exception):
    """A contender that cannot take part in a cell; the message says why."""


@dataclass(frozen=True)
class Cell:
    model: str
    dtype: str
    batch: int
    prompt: int
    new: int
    prefill: tuple[int, ...]  # prompt lengths of which the first token is timed; `prompt` is one of them

    @property
    def context(self) -> int:
        return max(self.prompt + self.new, *(length + 1 for length in self.prefill))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step of decoding reads."""
        return SIZES[self.model].decode_parameters * DTYPES[self.dtype].itemsize


class Contender:
    """A worker process (contenders.py): it runs while it is asked something, and is stopped in between."""

    def __init__(self, name: str, python: str, threads: int, log: Path) -> None:
        self.name, self._log = name, log
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [python, str(HERE / "contenders.py"), name, str(threads)]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise AbsentError(f"its process ended with {self._process.wait()}; its output is in {self._log}")
        self._process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise AbsentError(reply["error"])
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Field:
    """The contenders of one cell. All stay loaded if memory allows it; else each is loaded for its turn alone."""

    def __init__(self, cell: Cell, pythons: dict[str, str], threads: int, work: Path) -> None:
        self.cell, self.pythons, self.threads, self.work = cell, pythons, threads, work
        self.folder = folder_of(cell.model, cell.dtype, work)
        self.names: list[str] = []
        self.absent: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self._loaded: dict[str, Contender] = {}
        copies = len(pythons) + 2  # some engines keep a second copy
        self.together = copies * cell.weight_bytes < 0.8 * available_memory()

    def load(self, names: list[str]) -> None:
        """Loads each contender once, to keep it or to see that it can."""
        self.names = [name for name in names if self._try_to_load(name)]
        if not self.names:
            raise SystemExit(f"No contender can take part: {self.absent}")

    def _try_to_load(self, name: str) -> bool:
        print(f"  {name}: loading", flush=True)
        try:
            contender = self._load(name)
        except AbsentError as error:
            self.absent[name] = str(error)
            print(f"  {name}: absent: {error}", flush=True)
            return False
        self._keep_or_close(contender)
        return True

    def _load(self, name: str) -> Contender:
        cell = self.cell
        contender = Contender(name, self.pythons[name], self.threads, self.work / f"{name}.log")
        try:
            contender.ask(do="check", dtype=cell.dtype)
            folder = self._converted(name)
            request = {"folder": str(folder), "dtype": cell.dtype, "batch": cell.batch, "context": cell.context}
            self.about[name] = contender.ask(do="load", **request)
            for length in cell.prefill:  # kernels, threads and buffers are then in place
                new = min(8, cell.new) if length == cell.prompt else 1
                contender.ask(do="generate", prompts=self._prompts(length, seed=10**6), new=new)
        except BaseException:
            contender.close()
            raise
        return contender

    def _converted(self, name: str) -> Path:
        kind = getattr(CONTENDERS[name], "format", None)
        target = self.folder if kind is None else self.folder.with_name(f"{self.folder.name}.{kind}")
        if target.is_dir():
            return target
        log = self.work / f"{name}.{kind}.log"
        with log.open("w") as output:
            command = [self.pythons[name], str(HERE / "formats.py"), str(kind), str(self.folder), str(target)]
            status = subprocess.run(command, stdout=output, stderr=output).returncode
        if status != 0:
            lines = log.read_text().strip().splitlines() or ["it said nothing"]
            raise AbsentError(f"the model could not be converted: {lines[-1]}")
        return target

    def _prompts(self, length: int, seed: int) -> list[list[int]]:
        return random_prompts(SIZES[self.cell.model].vocab, self.cell.batch, length, seed)

    def _keep_or_close(self, contender: Contender) -> None:
        if self.together:
            self._loaded[contender.name] = contender
        else:
            contender.close()

    def turn(self, name: str, seed: int) -> dict[str, Any]:
        """One contender's part of a round: seconds to the first token by prompt length, and of the whole call."""
        contender = self._loaded[name] if self.together else self._load(name)
        try:
            # Not timed: after a stop the first call waits for threads and memory, for up to five times its own time.
            contender.ask(do="generate", prompts=self._prompts(self.cell.prompt, seed=10**6), new=1)
            first = {
                str(length): contender.ask(do="generate", prompts=self._prompts(length, seed), new=1)["seconds"]
                for length in self.cell.prefill
            }
            call = contender.ask(do="generate", prompts=self._prompts(self.cell.prompt, seed), new=self.cell.new)
        finally:
            self._keep_or_close(contender)
        return {"first": first, "call": call["seconds"], "tokens": call["tokens"], "memory": call["memory"]}

    def close(self) -> None:
        for contender in self._loaded.values():
            contender.close()


def available_memory() -> float:
    """Bytes that can be allocated without swapping; all of the memory where the system does not tell."""
    if not Path("/proc/meminfo").exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def measure_cell(cell: Cell, field: Field, rounds: int) -> dict[str, Any]:
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in field.names}
    reads: list[dict[str, float]] = []
    peaks: list[float] = []
    reference = OURS if OURS in field.names else field.names[0]
    for number in range(rounds):
        start = time.perf_counter()
        for name in field.names:
            if name == reference:
                reads.append(read_bandwidth(cell.weight_bytes, field.threads))
            turns[name].append(field.turn(name, seed=number))
            if name == reference:
                reads.append(read_bandwidth(cell.weight_bytes, field.threads))
        peaks.append(gemm_peak(DTYPES[cell.dtype]))
        print(f"  round {number + 1} of {rounds}: {time.perf_counter() - start:.1f} s", flush=True)
    # The kernel gives 2 MiB pages when it has them: sometimes to some of the passes only.
    measured = [pages for pages in reads[0] if all(pages in read for read in reads)]
    bandwidth = {pages: statistics.median(read[pages] for read in reads) for pages in measured}
    around = [  # each of our turns, before and after
        {pages: (before[pages] + after[pages]) / 2 for pages in measured}
        for before, after in zip(reads[::2], reads[1::2], strict=True)
    ]
    return {
        "model": cell.model,
        "dtype": cell.dtype,
        "batch": cell.batch,
        "prompt": cell.prompt,
        "new": cell.new,
        "threads": field.threads,
        "rounds": rounds,
        "weight_bytes": cell.weight_bytes,
        "read_bandwidth": bandwidth,
        "read_by_round": around,
        "gemm_peak": statistics.median(peaks),
        "contenders": {
            name: {**field.about[name], **result(cell, turns[name], turns[reference][0]["tokens"], around)}
            for name in field.names
        },
        "absent": field.absent,
    }


def result(
    cell: Cell, turns: list[dict[str, Any]], expected: list[list[int]], reads: list[dict[str, float]]
) -> dict[str, Any]:
    steps = [(turn["call"] - turn["first"][str(cell.prompt)]) / (cell.new - 1) for turn in turns]
    step, call = summary(steps), summary([turn["call"] for turn in turns])
    memory = turns[0]["memory"]
    pages = "huge" if memory.get("huge_pages", 0) > memory.get("resident", 0) / 2 and "huge" in reads[0] else "small"
    # What a shared machine reads may change by half from one round to the next, so a step is beside its own round's.
    shares = [cell.weight_bytes / step / read[pages] for step, read in zip(steps, reads, strict=True)]
    return {
        "call": call,
        "tokens_per_second": cell.batch * cell.new / call["median"],
        "step": step,
        "first": {length: summary([turn["first"][length] for turn in turns]) for length in turns[0]["first"]},
        "bytes_per_second": cell.weight_bytes / step["median"],
        "pages": pages,
        "share_of_bandwidth": statistics.median(shares),
        "same_tokens": statistics.median_low(map(common_prefix, turns[0]["tokens"], expected)),
        "memory": memory,
    }


def common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def ratios(cell: dict[str, Any]) -> dict[str, Any]:
    """How many times faster than each peer of the cell we are, for each measure; nothing without a peer.

    In the median round, not of two medians: memory of a shared machine has a fast and a slow state of tens of seconds,
    and the median of such times falls into the one or the other by luck.
    """
    peers = {name: timed_rounds(row) for name, row in cell["contenders"].items() if name != OURS}
    if OURS not in cell["contenders"] or not peers:
        return {}
    found = {}
    for measure, ours in timed_rounds(cell["contenders"][OURS]).items():
        to = {
            name: statistics.median(their / our for our, their in zip(ours, rounds[measure], strict=True))
            for name, rounds in peers.items()
        }
        best = min(to, key=to.__getitem__)
        found[measure] = {"best_peer": best, "ratio": to[best], "to": to}
    return found


def timed_rounds(row: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each round for what a contender was timed for."""
    firsts = {f"first {length}": seconds["all"] for length, seconds in row["first"].items()}
    return {"step": row["step"]["all"], "call": row["call"]["all"], **firsts}


def print_cell(cell: dict[str, Any]) -> None:
    print_conditions(cell)
    lengths = list(next(iter(cell["contenders"].values()))["first"])
    firsts = "".join(f"{f'first {length}, ms':>16}" for length in lengths)
    print(f"{'':12}{'tokens/s':>9}{'ms/step':>9}{'min-max':>14}{'GB/s':>6}{'share':>7}{firsts}  same tokens")
    for name, row in cell["contenders"].items():
        step = row["step"]
        spread = f"{step['min'] * 1e3:.2f}-{step['max'] * 1e3:.2f}"
        firsts = "".join(f"{row['first'][length]['median'] * 1e3:>16.1f}" for length in lengths)
        print(
            f"{name:12}{row['tokens_per_second']:>9.1f}{step['median'] * 1e3:>9.2f}{spread:>14}"
            f"{row['bytes_per_second'] / 1e9:>6.1f}{row['share_of_bandwidth']:>7.0%}{firsts}  {row['same_tokens']}"
        )
        if cell["dtype"] == "float32" and row["same_tokens"] < min(SURE_TOKENS, cell["new"]):
            print(
                f"  DISAGREES: {name} gives other tokens than {OURS} after {row['same_tokens']}; is it the same model?"
            )
    for name, reason in cell["absent"].items():
        print(f"{name:12} absent: {reason}")
    for measure, found in cell["ratios"].items():
        to_hf = f", {found['to']['hf']:.2f} times HF" if "hf" in found["to"] else ""
        print(f"  {OURS}, {measure}: {found['ratio']:.2f} times the best peer, {found['best_peer']}{to_hf}")


def print_conditions(cell: dict[str, Any]) -> None:
    pages = {"small": "4 KiB", "huge": "2 MiB"}
    rates = [f"{rate / 1e9:.1f} GB/s with {pages[kind]} pages" for kind, rate in cell["read_bandwidth"].items()]
    print(
        f"\n{cell['model']} {cell['dtype']} batch {cell['batch']}: prompt {cell['prompt']} + {cell['new']} new tokens, "
        f"{cell['threads']} threads, {cell['rounds']} rounds; weights {cell['weight_bytes'] / 1e6:.0f} MB"
    )
    print(f"the machine reads {', '.join(rates)}; its GEMM peak is {cell['gemm_peak'] / 1e9:.0f} GFLOP/s")


def print_means(cells: list[dict[str, Any]]) -> None:
    """The geometric means over cells of what the cells have in common."""
    measures = dict.fromkeys(measure for cell in cells for measure in cell["ratios"])
    for measure in measures:
        found = [cell["ratios"][measure]["ratio"] for cell in cells if measure in cell["ratios"]]
        if min(found) <= 0:  # a whole call was no longer than its first token
            print(
                f"{OURS}, {measure}: no mean, since a step came out negative: the machine was busy with something else"
            )
            continue
        mean = f"{statistics.geometric_mean(found):.2f} times the best peer in the geometric mean of {len(found)} cells"
        print(f"{OURS}, {measure}: {mean}, {min(found):.2f} at the least")


def pythons_of(given: list[str], names: list[str]) -> dict[str, str]:
    """The interpreter of each contender: PATH is for all peers, NAME=PATH for one; ours has this one."""
    everyone = next((path for path in given if "=" not in path), sys.executable)
    pythons = {name: sys.executable if name == OURS else everyone for name in names}
    for text in given:
        name, separator, path = text.partition("=")
        if separator:
            pythons[chosen("--python", name, CONTENDERS)[0]] = path
    return pythons


def merged(cells: list[dict[str, Any]], save: Path | None) -> list[dict[str, Any]]:
    """The cells of `save` with those of this run in their place."""
    if save is None or not save.exists():
        return cells
    by_key = {
        (cell["model"], cell["dtype"], cell["batch"]): cell
        for cell in [*json.loads(save.read_text())["cells"], *json.loads(json.dumps(cells))]
    }
    order = {name: i for i, name in enumerate(SIZES)}
    return [by_key[key] for key in sorted(by_key, key=lambda key: (order.get(key[0], 99), key[1] != "float32", key[2]))]


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S,M",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    batches: Annotated[str, typer.Option(help="Numbers of rows.")] = "1,8",
    contenders: Annotated[str, typer.Option(help=f"Of {', '.join(CONTENDERS)}.")] = ",".join(CONTENDERS),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender in a cell.")] = 3,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="New tokens of each row.")] = 128,
    prefill: Annotated[str, typer.Option(help="Prompt lengths to time to the first token, at batch 1.")] = "128,512",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    python: Annotated[list[str] | None, typer.Option(help="Interpreter of the peers, or NAME=PATH for one.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the models; kept. Default: in the user's cache.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="JSON file; its cells that are not measured now stay.")] = None,
) -> None:
    names = chosen("--contenders", contenders, CONTENDERS)
    pythons = pythons_of(python or [], names)
    lengths = counts("--prefill", prefill)
    work = work_folder(work)
    torch.set_num_threads(threads)
    cells = []
    for model in chosen("--models", models, SIZES):
        for dtype in chosen("--dtypes", dtypes, DTYPES):
            for batch in counts("--batches", batches):
                timed_lengths = sorted({prompt, *(lengths if batch == 1 else [])})
                cell = Cell(model, dtype, batch, prompt, new, tuple(timed_lengths))
                print(f"\n{model} {dtype} batch {batch}", flush=True)
                field = Field(cell, pythons, threads, work)
                try:
                    field.load(names)
                    measured = measure_cell(cell, field, rounds)
                finally:
                    field.close()
                cells.append({**measured, "ratios": ratios(measured), **surroundings(torch.device("cpu"))})
                print_cell(cells[-1])
    print()
    print_means(cells)
    finish({"benchmark": "peers", "cells": merged(cells, save)}, save)


if __name__ == "__main__":
    typer.run(main)
