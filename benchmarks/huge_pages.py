"""What 2 MiB pages bring to decoding, and what it costs to make them of live weights.

    python benchmarks/huge_pages.py                               # S and M, both types, batch 1 and 8
    python benchmarks/huge_pages.py --models XS --rounds 1        # is it right?

Two models of equal weights take turns: one as torch allocated it, one whose tensors were made huge pages of in place
with madvise(MADV_COLLAPSE) (Linux 6.1 and later). A step is the difference of a long and a short call over the tokens
between them. `break-even` is how many steps it takes until the time for the madvise is won back.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import generate
from measure import chosen, counts, finish, rounds_of, summary, surroundings
from sizes import DTYPES, SIZES, random_model, random_prompts
from torch import Tensor

MADV_COLLAPSE = 25
HUGE = 1 << 21  # bytes of a page
PROMPT = 16


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S,M",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    batches: Annotated[str, typer.Option(help="Numbers of rows.")] = "1,8",
    new: Annotated[int, typer.Option(min=2, help="New tokens of each row.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 5,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    names, kinds = chosen("--models", models, SIZES), chosen("--dtypes", dtypes, DTYPES)
    results = []
    for name, dtype in itertools.product(names, kinds):
        as_allocated, collapsed = random_model(name, dtype), random_model(name, dtype)
        cost = collapse(list(collapsed.parameters()))
        print(
            f"{name} {dtype}: {cost['huge_bytes'] / 1e6:.0f} of {cost['bytes'] / 1e6:.0f} MB in {cost['seconds']:.2f} s"
        )
        for batch in counts("--batches", batches):
            prompts = torch.tensor(random_prompts(SIZES[name].vocab, batch, PROMPT, seed=0))
            steps = step_seconds({"small": as_allocated, "huge": collapsed}, prompts, new, rounds)
            small, huge = steps["small"]["median"], steps["huge"]["median"]
            break_even = cost["seconds"] / (small - huge) if small > huge else None
            results.append(
                {"model": name, "dtype": dtype, "batch": batch, **cost, "step": steps, "break_even_steps": break_even}
            )
            won_back = "never" if break_even is None else f"{break_even:.0f} steps"
            print(
                f"  batch {batch}: {small * 1e3:.2f} ms with 4 KiB pages, {huge * 1e3:.2f} ms with 2 MiB, "
                f"ratio {small / huge:.3f}, break-even {won_back}"
            )
    finish({"benchmark": "huge_pages", "results": results, **surroundings(torch.device("cpu"))}, save)


def collapse(tensors: list[Tensor]) -> dict[str, Any]:
    """Turns what whole huge pages there are in the tensors' storages into such; a refusal of the kernel is no error."""
    begin, done, total = time.perf_counter(), 0, 0
    libc = ctypes.CDLL(None)
    for tensor in tensors:
        address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        first, last = -(-address // HUGE) * HUGE, (address + size) // HUGE * HUGE
        total += size
        if sys.platform == "linux" and last > first:
            if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_COLLAPSE) == 0:
                done += last - first
    return {"bytes": total, "huge_bytes": done, "seconds": time.perf_counter() - begin}


def step_seconds(models: dict[str, Any], prompts: Tensor, new: int, rounds: int) -> dict[str, dict[str, Any]]:
    calls = {}
    for pages, model in models.items():
        calls[f"{pages} first"] = lambda model=model: generate(model, prompts, 1)
        calls[f"{pages} whole"] = lambda model=model: generate(model, prompts, new)
    seconds = rounds_of(calls, rounds)
    return {
        pages: summary(
            [
                (whole - first) / (new - 1)
                for first, whole in zip(seconds[f"{pages} first"], seconds[f"{pages} whole"], strict=True)
            ]
        )
        for pages in models
    }


if __name__ == "__main__":
    typer.run(main)
