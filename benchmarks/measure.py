"""What the benchmarks share: summaries of times, the machine's limits, what a figure depends on, and its JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import typer

import demiurgic


def work_folder(work: Path | None) -> Path:
    """Where models and converted models are kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (work or cache / "demiurgic-benchmarks").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in `text`, separated by commas; BadParameter for one that is not known."""
    known = list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option} names {name!r}, but knows only {', '.join(known)}.")
    if not names:
        raise typer.BadParameter(f"{option} is empty; it takes one or more of {', '.join(known)}.")
    return names


def counts(option: str, text: str, most: int = 2**31) -> list[int]:
    """The positive integers in `text`, separated by commas."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= most for number in numbers):
        raise typer.BadParameter(f"{option} is {text!r}, but must be integers from 1 to {most}, such as 1,8.")
    return numbers


def summary(seconds: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds_of(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender: one call each to warm up, then `rounds` times all in turn (A B C A B C ...)."""
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            seconds[name].append(timed(work))
    return seconds


# --- the machine -----------------------------------------------------------------------------------------------------


def read_bandwidth(num_bytes: float, threads: int, seconds: float = 0.3) -> dict[str, float]:
    """Bytes a second that `threads` threads read of a buffer of `num_bytes`: {"small": ..., "huge": ...}.

    By read_bandwidth.c, with pages of 4 KiB and of 2 MiB; the median pass, as our figures are medians too, of the better
    of reading from front to back and at eight places at once. Without a C compiler by torch.sum, with the pages that the
    system gives ("small" only).
    """
    program = _reader()
    if program is None:
        data = torch.ones(int(num_bytes) // 4)
        return {"small": 4 * data.numel() / statistics.median(timed(data.sum) for _ in range(10))}
    command = [program, str(threads), str(max(num_bytes, 2**22)), str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    rates: dict[str, float] = {}
    for line in found.stdout.splitlines():
        pages, _, rate = line.split()
        rates[pages] = max(rates.get(pages, 0.0), float(rate) * 1e9)
    return {pages: rate for pages, rate in rates.items() if rate > 0}


def _reader() -> Path | None:
    """The compiled read_bandwidth.c, or None where it cannot be compiled."""
    compiler, source = shutil.which("cc"), Path(__file__).with_name("read_bandwidth.c")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    program = work_folder(None) / f"read_bandwidth-{source.stat().st_mtime_ns}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            compiled = Path(folder) / "read_bandwidth"
            command = [compiler, "-O3", "-march=native", "-pthread", "-o", str(compiled), str(source)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                return None
            compiled.rename(program)
    return program


def gemm_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of torch's product of two square matrices; the best of some."""
    a, b = torch.randn(2, size, size).to(dtype)
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(4))


def surroundings(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code that is measured."""
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "system": platform.platform(),
        },
        "commit": commit(),
        "torch": torch.__version__,
        "demiurgic": demiurgic.__version__,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str | None:
    """The repository's commit, with -dirty where files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def write(report: dict[str, Any], save: Path | None) -> None:
    """Writes the report to `save`, if given."""
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


def finish(report: dict[str, Any], save: Path | None) -> None:
    """Writes the report to `save`, if given, and prints it as the last line."""
    write(report, save)
    print(json.dumps(report))
