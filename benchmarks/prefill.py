"""How fast prompts are read, and what share of the machine's GEMM peak that is.

    python benchmarks/prefill.py                                              # S and M, both types
    python benchmarks/prefill.py --models XS --lengths 16,128 --rounds 1      # is it right?

Our engine reads a prompt and gives one token; a plain PyTorch forward (torch_loop.py) does the same on the same
tensors, in turns, and torch multiplies two matrices of 2048 x 2048, whose rate is the peak. Operations are those of the
layers' matrix products, of the attention without its masked half, and of the head for the last token alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import chosen, counts, finish, gemm_peak, rounds_of, summary, surroundings
from sizes import DTYPES, SIZES, random_model, random_prompts, torch_loop

import demiurgic
from demiurgic import DemiurgicForCausalLM

MOST_TOKENS = 2048  # positions that the models are made for


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S,M",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    lengths: Annotated[str, typer.Option(help="Tokens of the prompt.")] = "16,32,64,128,256,512,1024",
    batch: Annotated[int, typer.Option(min=1, help="Prompts that are read in one call.")] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    names = chosen("--models", models, SIZES)
    kinds = chosen("--dtypes", dtypes, DTYPES)
    tokens = counts("--lengths", lengths, MOST_TOKENS)
    torch.set_num_threads(threads)
    results = []
    print(
        f"{'':24}{'tokens':>7}{'ms':>9}{'min-max':>16}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'torch, ms':>11}"
        f"{'ratio':>7}"
    )
    for name, dtype in itertools.product(names, kinds):
        model = random_model(name, dtype)
        for length in tokens:
            results.append(measure(model, name, dtype, batch, length, rounds))
            print_row(results[-1])
    finish({"benchmark": "prefill", "results": results, **surroundings(torch.device("cpu"))}, save)


def measure(model: DemiurgicForCausalLM, name: str, dtype: str, batch: int, length: int, rounds: int) -> dict[str, Any]:
    size = SIZES[name]
    prompts = torch.tensor(random_prompts(size.vocab, batch, length, seed=0))
    loop = torch_loop(model, name, batch, length + 1)
    peaks: list[float] = []
    calls = {
        "engine": lambda: demiurgic.generate(model, prompts, max_new_tokens=1, do_sample=False, eos_token_id=[]),
        "torch": lambda: loop.generate(prompts, 1),
        "peak": lambda: peaks.append(gemm_peak(DTYPES[dtype])),
    }
    seconds = rounds_of(calls, rounds)
    ours, peak = summary(seconds["engine"]), summary(peaks)["median"]
    flops = size.flops(length, batch)
    return {
        "model": name,
        "dtype": dtype,
        "batch": batch,
        "tokens": length,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "gemm_peak": peak,
        "seconds": ours,
        "torch_seconds": summary(seconds["torch"]),
        "ratio": summary(seconds["torch"])["median"] / ours["median"],
        "flops": flops,
        "share_of_peak": flops / ours["median"] / peak,
    }


def print_row(row: dict[str, Any]) -> None:
    seconds = row["seconds"]
    spread = f"{seconds['min'] * 1e3:.2f}-{seconds['max'] * 1e3:.2f}"
    print(
        f"{row['model']:3}{row['dtype']:10} batch {row['batch']:<5}{row['tokens']:>6}"
        f"{seconds['median'] * 1e3:>9.2f}{spread:>16}{row['batch'] * row['tokens'] / seconds['median']:>10.0f}"
        f"{row['flops'] / seconds['median'] / 1e9:>9.0f}{row['share_of_peak']:>9.0%}"
        f"{row['torch_seconds']['median'] * 1e3:>11.2f}{row['ratio']:>7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
