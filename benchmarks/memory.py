"""How fast this machine reads memory, again and again: the rate of a shared one changes, and with it that of decoding.

    python benchmarks/memory.py                                   # 1 GB, for a minute and a quarter
    python benchmarks/memory.py --seconds 1200 --megabytes 400    # and for twenty

Each line is a reading of the same number of bytes by `read_bandwidth.c`, which peers.py has around our turns.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from measure import finish, read_bandwidth, summary, surroundings


def main(
    seconds: Annotated[float, typer.Option(min=0, help="How long to go on.")] = 75,
    megabytes: Annotated[int, typer.Option(min=4, help="Read in a pass.")] = 1000,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    begin, readings = time.perf_counter(), []
    print("       s  GB/s with 4 KiB pages, with 2 MiB pages")
    while not readings or time.perf_counter() - begin < seconds:
        rates = read_bandwidth(megabytes * 1e6, threads)
        readings.append({"at": time.perf_counter() - begin, **rates})
        print(f"{readings[-1]['at']:8.1f}{rates['small'] / 1e9:8.1f}{rates.get('huge', float('nan')) / 1e9:8.1f}")
    small = {name: rate / 1e9 for name, rate in summary([r["small"] for r in readings]).items() if name != "all"}
    print(f"4 KiB pages: {small['min']:.1f} to {small['max']:.1f} GB/s, {small['median']:.1f} in the median")
    report = {"benchmark": "memory", "threads": threads, "bytes": megabytes * 10**6, "readings": readings}
    finish(report | surroundings(torch.device("cpu")), save)


if __name__ == "__main__":
    typer.run(main)
