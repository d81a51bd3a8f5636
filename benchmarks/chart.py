"""The chart of README.md and docs/performance.md, made of what benchmarks/peers.py has saved.

    python benchmarks/chart.py                                  # benchmarks/results/peers.json to docs/performance.png

A group of bars is a cell (model and batch), a panel a type and a measure. A bar's height is speed relative to the
cell's best peer, whose speed is the line at 1, in the median round; the number on our bar is the speed itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
OURS = "demiurgic"
NAMES = {
    OURS: "Demiurgic",
    "openvino": "OpenVINO GenAI",
    "onnxruntime": "onnxruntime-genai",
    "llamacpp": "llama.cpp",
    "ctranslate2": "CTranslate2",
    "torch": "PyTorch loop",
    "hf": "HF generate",
}
COLORS = ("#c8102e", "#2f6690", "#3a9d8f", "#e0a030", "#8e6c8a", "#8a8f98", "#c3c7cd")
Measure = tuple[str, str]  # a title, and what `seconds` looks up


def main(
    results: Annotated[Path, typer.Option(help="JSON of peers.py.")] = ROOT / "benchmarks" / "results" / "peers.json",
    out: Annotated[Path, typer.Option(help="PNG.")] = ROOT / "docs" / "performance.png",
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = json.loads(results.read_text())["cells"]
    if not cells:
        raise typer.BadParameter(f"--results: {results} has no cells.")
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    measures = [
        ("Decode, tokens/s", "step"),
        *((f"Prompt of {n}, tokens/s", f"first {n}") for n in prompt_lengths(cells)),
    ]
    figure, axes = pyplot.subplots(
        len(measures), len(dtypes), figsize=(6.2 * len(dtypes), 3.1 * len(measures)), squeeze=False, sharey="row"
    )
    for row, measure in enumerate(measures):
        for column, dtype in enumerate(dtypes):
            draw(axes[row][column], [cell for cell in cells if cell["dtype"] == dtype], measure, dtype)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.suptitle(title(cells), fontsize=10)
    figure.tight_layout(rect=(0, 0.02 + 0.16 / len(measures), 1, 1))
    figure.savefig(out, dpi=130, metadata={"Software": None})
    print(f"{out}: {len(cells)} cells")


def prompt_lengths(cells: list[dict[str, Any]]) -> list[int]:
    return sorted({int(length) for cell in cells for row in cell["contenders"].values() for length in row["first"]})


def title(cells: list[dict[str, Any]]) -> str:
    """What the cells have in common, or every value of what they have not."""
    cpu, threads, prompt, new = (
        ", ".join(dict.fromkeys(str(value) for value in values))
        for values in zip(*((c["machine"]["cpu"], c["threads"], c["prompt"], c["new"]) for c in cells), strict=True)
    )
    return (
        f"Speed relative to the best peer at equal precision, {cpu}, {threads} threads\n"
        f"prompt of {prompt} tokens, {new} new tokens, greedy"
    )


def speed(cell: dict[str, Any], name: str, measure: str) -> float | None:
    """Tokens a second of a contender, or None where it is absent or was not timed for this."""
    row = cell["contenders"].get(name)
    if row is None:
        return None
    if measure == "step":
        return float(cell["batch"] / row["step"]["median"])
    length = measure.removeprefix("first ")
    return cell["batch"] * int(length) / row["first"][length]["median"] if length in row["first"] else None


def draw(axis: Any, cells: list[dict[str, Any]], measure: Measure, dtype: str) -> None:
    heading, key = measure
    names = [name for name in NAMES if any(name in cell["contenders"] or name in cell["absent"] for cell in cells)]
    shown = [cell for cell in cells if any(speed(cell, name, key) for name in names)]
    width = 0.86 / len(names)
    for place, name in enumerate(names):
        offset = (place - (len(names) - 1) / 2) * width
        color = COLORS[list(NAMES).index(name)]
        bars = [(i, relative(cell, name, key)) for i, cell in enumerate(shown)]
        present = [(i + offset, height) for i, height in bars if height is not None]
        axis.bar([x for x, _ in present], [h for _, h in present], width * 0.92, color=color, label=NAMES[name])
        for i, height in bars:
            if height is None:
                axis.text(
                    i + offset, 0.02, "absent", rotation=90, fontsize=6, color="#777777", ha="center", va="bottom"
                )
            elif name == OURS:
                value = speed(shown[i], name, key) or 0.0
                label = f" {value:,.0f}"
                axis.text(i + offset, height, label, rotation=90, fontsize=7, ha="center", va="bottom", color=color)
    axis.margins(y=0.15)  # room for the numbers
    axis.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(shown)), [f"{cell['model']}, batch {cell['batch']}" for cell in shown], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_title(f"{heading}, {dtype}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def relative(cell: dict[str, Any], name: str, measure: str) -> float | None:
    """Speed over the best peer's, by the ratios of the cell; by medians where we are alone or absent."""
    value, ratio = speed(cell, name, measure), cell["ratios"].get(measure)
    if value is None:
        return None
    if ratio:
        return float(ratio["ratio"] / (1 if name == OURS else ratio["to"][name]))
    return value / max(speed(cell, other, measure) or 0.0 for other in cell["contenders"])


if __name__ == "__main__":
    typer.run(main)
