"""The table of docs/performance.md, made of what benchmarks/peers.py has saved.

python benchmarks/table.py                     # benchmarks/results/peers.json, as Markdown
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from chart import NAMES, OURS, ROOT

RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
MEASURES = ("step", "first 128", "first 512")


def main(results: Annotated[Path, typer.Option(help="JSON of peers.py.")] = RESULTS) -> None:
    print(table(json.loads(results.read_text(encoding="utf-8"))["cells"]))


def table(cells: list[dict[str, Any]]) -> str:
    """A row a cell: our step, its share of the bandwidth, and speeds as ratios to the best peer's."""
    titles = ["model", "dtype", "rows", "ms a step", "share of bandwidth", "decode, times the best peer", "times HF"]
    titles += ["prompt of 128", "of 512"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join(lines + [row(cell) for cell in cells])


def row(cell: dict[str, Any]) -> str:
    step = cell["contenders"][OURS]["step"]["median"]
    share = cell["contenders"][OURS]["share_of_bandwidth"]
    ratios = cell["ratios"]
    against_hf = ratios["step"]["to"].get("hf")
    fields = [
        cell["model"],
        cell["dtype"],
        cell["batch"],
        f"{step * 1e3:.2f}",
        f"{share:.0%}",
        against_best(ratios["step"]),
        "-" if against_hf is None else f"{against_hf:.2f}",
        *(against_best(ratios[name]) if name in ratios else "-" for name in MEASURES[1:]),
    ]
    return "| " + " | ".join(str(field) for field in fields) + " |"


def against_best(ratio: dict[str, Any]) -> str:
    return f"{ratio['ratio']:.2f} ({NAMES[ratio['best_peer']]})"


if __name__ == "__main__":
    typer.run(main)
