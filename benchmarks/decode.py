"""How fast a step of decoding is, what share of the machine's read bandwidth that is, and where its time goes.

    python benchmarks/decode.py                                  # XS, S, M, both types, batch 1 and 8, 1 and 2 threads
    python benchmarks/decode.py --models XS --new 8 --rounds 1   # is it right?

Our engine and a plain PyTorch loop (torch_loop.py) take turns on the same tensors: a prompt and one token, then the
prompt and `--new` tokens, greedily, EOS off; a step is the difference of the two times over (new - 1). In the same
rounds a C loop reads as many bytes as the weights have. The share is the bytes of the weights that a step reads, over
the step's time, over that bandwidth (4 KiB pages, or 2 MiB pages if the process has most of its memory on them).

The breakdown has a second model of half the layers on the same tensors: the difference of the steps gives the time of a
layer, the remainder is the head, the sampler and everything that is done once a step. Beside each is the time to
read its weights at the measured bandwidth. `overhead` is the step without the time to read all weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from contenders import memory
from measure import chosen, counts, finish, read_bandwidth, rounds_of, summary, surroundings
from sizes import DTYPES, SIZES, Size, model_on, random_model, random_prompts, torch_loop
from torch import Tensor

import demiurgic
from demiurgic import DemiurgicForCausalLM


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "XS,S,M",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    batches: Annotated[str, typer.Option(help="Numbers of rows.")] = "1,8",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="New tokens of each row.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    names = chosen("--models", models, SIZES)
    kinds = chosen("--dtypes", dtypes, DTYPES)
    rows, teams = counts("--batches", batches), counts("--threads", threads)
    results = []
    print_header()
    for name, dtype in itertools.product(names, kinds):
        model = random_model(name, dtype)
        for batch, team in itertools.product(rows, teams):
            torch.set_num_threads(team)
            results.append(measure(model, name, dtype, batch, prompt, new, rounds))
            print_row(results[-1])
    finish({"benchmark": "decode", "results": results, **surroundings(torch.device("cpu"))}, save)


def measure(
    model: DemiurgicForCausalLM, name: str, dtype: str, batch: int, prompt: int, new: int, rounds: int
) -> dict[str, Any]:
    size, threads = SIZES[name], torch.get_num_threads()
    half = half_of(model, size)
    loop = torch_loop(model, name, batch, prompt + new)
    prompts = torch.tensor(random_prompts(size.vocab, batch, prompt, seed=0))
    weight_bytes = size.decode_parameters * DTYPES[dtype].itemsize
    rates: list[dict[str, float]] = []
    contenders: dict[str, Callable[[int], Any]] = {
        "engine": lambda length: generate(model, prompts, length),
        "half": lambda length: generate(half, prompts, length),
        "loop": lambda length: loop.generate(prompts, length),
    }
    calls: dict[str, Callable[[], Any]] = {"read": lambda: rates.append(read_bandwidth(weight_bytes, threads, 0.1))}
    for contender, call in contenders.items():
        calls[f"{contender} first"] = lambda call=call: call(1)
        calls[f"{contender} whole"] = lambda call=call: call(new)
    seconds = rounds_of(calls, rounds)
    steps = {
        contender: summary(
            [
                (whole - first) / (new - 1)
                for first, whole in zip(seconds[f"{contender} first"], seconds[f"{contender} whole"], strict=True)
            ]
        )
        for contender in contenders
    }
    bandwidth, pages = bandwidth_of(rates)
    step = steps["engine"]["median"]
    return {
        "model": name,
        "dtype": dtype,
        "batch": batch,
        "threads": threads,
        "prompt": prompt,
        "new": new,
        "rounds": rounds,
        "weight_bytes": weight_bytes,
        "read_bandwidth": bandwidth,
        "pages": pages,
        "step": steps["engine"],
        "loop_step": steps["loop"],
        "ratio": steps["loop"]["median"] / step,
        "tokens_per_second": batch / step,
        "share_of_bandwidth": weight_bytes / step / bandwidth,
        "overhead": step - weight_bytes / bandwidth,
        "breakdown": breakdown(size, DTYPES[dtype].itemsize, step, steps["half"]["median"], bandwidth),
    }


def generate(model: DemiurgicForCausalLM, prompts: Tensor, new: int) -> Any:
    return demiurgic.generate(model, prompts, max_new_tokens=new, do_sample=False, eos_token_id=[])


def half_of(model: DemiurgicForCausalLM, size: Size) -> DemiurgicForCausalLM:
    """A model of the first half of the layers, on the same tensors."""
    half = replace(size, layers=size.layers // 2)
    wanted = {name for name, _ in half.shapes()}
    return model_on({name: tensor for name, tensor in model.state_dict().items() if name in wanted}, half)


def bandwidth_of(rates: list[dict[str, float]]) -> tuple[float, str]:
    """The median rate for the pages that this process has most of its memory on, and their kind."""
    used = memory()
    pages = "huge" if used.get("huge_pages", 0) > used.get("resident", 0) / 2 and "huge" in rates[0] else "small"
    return summary([rate[pages] for rate in rates])["median"], pages


def breakdown(
    size: Size, itemsize: int, step: float, half_step: float, bandwidth: float
) -> dict[str, dict[str, float]]:
    """Seconds of all layers and of what is done once a step, each with the seconds to read its weights."""
    layers = (step - half_step) * size.layers / (size.layers - size.layers // 2)
    layer_bytes = size.linear_parameters * itemsize
    once_bytes = size.decode_parameters * itemsize - layer_bytes
    return {
        "layers": {"seconds": layers, "reading": layer_bytes / bandwidth},
        "once": {"seconds": step - layers, "reading": once_bytes / bandwidth},
    }


def print_header() -> None:
    print(
        f"{'':22}{'threads':>8}{'tokens/s':>10}{'ms/step':>9}{'GB/s':>6}{'share':>7}{'overhead, µs':>14}"
        f"{'loop, ms':>10}{'ratio':>7}  layers, ms (reading)  once, ms (reading)",
        flush=True,
    )


def print_row(row: dict[str, Any]) -> None:
    step, (layers, once) = row["step"]["median"], row["breakdown"].values()
    parts = "".join(f"{part['seconds'] * 1e3:>14.2f} ({part['reading'] * 1e3:.2f})" for part in (layers, once))
    print(
        f"{row['model']:3}{row['dtype']:9} batch {row['batch']:<3}{row['threads']:>9}{row['tokens_per_second']:>10.1f}"
        f"{step * 1e3:>9.2f}{row['weight_bytes'] / step / 1e9:>6.1f}{row['share_of_bandwidth']:>7.0%}"
        f"{row['overhead'] * 1e6:>14.0f}{row['loop_step']['median'] * 1e3:>10.2f}{row['ratio']:>7.2f}{parts}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
