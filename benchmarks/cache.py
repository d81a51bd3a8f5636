"""What the key/value cache brings: a plain PyTorch loop over `forward` without a cache against `generate`.

    python benchmarks/cache.py                          # the 100M model; on a few cores, time for a long coffee
    python benchmarks/cache.py --quick                  # one repeat instead of three
    python benchmarks/cache.py --config 10m --new 8,16  # is it right?

Both continue the same prompt of 16 tokens greedily on the same random weights and must give the same tokens. The loop
is the usual one: `forward` over all tokens so far, with the logits of all positions, then argmax of the last. They take
turns (loop, generate, loop, generate, ...), so that a change in the machine's speed meets both. For each number of new
tokens the table has the median seconds of both and the ratio of the medians. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from measure import surroundings
from torch import Tensor

import demiurgic
from demiurgic import DemiurgicConfig, DemiurgicForCausalLM

CONFIGS: dict[str, Callable[[], DemiurgicConfig]] = {
    "10m": demiurgic.get_10m_config,
    "100m": demiurgic.get_100m_config,
    "350m": demiurgic.get_350m_config,
    "1b": demiurgic.get_1b_config,
}
PROMPT = 16  # tokens


def main(
    config: Annotated[str, typer.Option(help=f"The model's size: {', '.join(CONFIGS)}.")] = "100m",
    new: Annotated[str, typer.Option(help="Numbers of new tokens, separated by commas.")] = "50,100,200,512",
    quick: Annotated[bool, typer.Option("--quick", help="Measure once instead of three times.")] = False,
    device: Annotated[str, typer.Option(help="Where the model is: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    if config not in CONFIGS:
        raise typer.BadParameter(f"--config is {config!r}, but must be one of {', '.join(CONFIGS)}.")
    try:
        lengths = [int(length) for length in new.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise typer.BadParameter(f"--new is {new!r}, but must be positive integers, such as 50,100.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype is {dtype!r}, but must be float32, bfloat16 or float16.")
    model = random_model(CONFIGS[config](), torch.device(device), getattr(torch, dtype))
    prompt = torch.randint(6, model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    prompt = prompt.to(device)

    for contender in (uncached_loop, cached_generate):  # threads, memory and kernels are then in place
        contender(model, prompt, 2)
    results = [measure(model, prompt, length, repeats=1 if quick else 3) for length in lengths]

    print(f"\n{'new tokens':>10}  {'loop, s':>9}  {'generate, s':>11}  {'tokens/s':>8}  {'ratio':>6}  same tokens")
    for row in results:
        loop, cached = row["loop"]["median"], row["generate"]["median"]
        print(
            f"{row['new_tokens']:>10}  {loop:>9.2f}  {cached:>11.2f}  {row['generate']['tokens_per_second']:>8.1f}  "
            f"{row['ratio']:>5.1f}x  {row['same_tokens']} of {row['new_tokens']}"
        )
    report = {
        "benchmark": "cache",
        "config": config,
        "num_parameters": model.num_parameters(),
        "num_key_value_heads": model.config.kv_heads,
        "prompt_tokens": PROMPT,
        "dtype": dtype,
        "results": results,
        **surroundings(torch.device(device)),
    }
    print(json.dumps(report))


def random_model(config: DemiurgicConfig, device: torch.device, dtype: torch.dtype) -> DemiurgicForCausalLM:
    """Random weights, the same at every run; no EOS, so that nothing ends early."""
    torch.manual_seed(0)
    config.eos_token_id = None
    return DemiurgicForCausalLM(config).to(device, dtype).eval()


@torch.no_grad()
def uncached_loop(model: DemiurgicForCausalLM, prompt: Tensor, new: int) -> Tensor:
    """The old way: int64 [1, T] to [1, T + new], every token computed again at every step."""
    ids = prompt
    for _ in range(new):
        logits = model(ids, use_cache=False).logits  # [1, tokens so far, V]
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def cached_generate(model: DemiurgicForCausalLM, prompt: Tensor, new: int) -> Tensor:
    return model.generate(prompt, new, do_sample=False)


def measure(model: DemiurgicForCausalLM, prompt: Tensor, new: int, repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"loop": [], "generate": []}
    tokens: dict[str, list[int]] = {}
    for repeat in range(repeats):
        for name, contender in (("loop", uncached_loop), ("generate", cached_generate)):
            elapsed, out = timed(contender, model, prompt, new)
            seconds[name].append(elapsed)
            tokens[name] = out[0, PROMPT:].tolist()
            print(f"{new} new tokens, {repeat + 1} of {repeats}, {name}: {elapsed:.2f} s", flush=True)
    pairs = zip(tokens["loop"], tokens["generate"], strict=True)
    return {
        "new_tokens": new,
        "ratio": statistics.median(seconds["loop"]) / statistics.median(seconds["generate"]),
        "same_tokens": next((i for i, (a, b) in enumerate(pairs) if a != b), new),  # up to the first that differs
        **{name: summary(values, new) for name, values in seconds.items()},
    }


def timed(contender: Callable[..., Tensor], *arguments: Any) -> tuple[float, Tensor]:
    device = arguments[1].device
    synchronize(device)
    start = time.perf_counter()
    out = contender(*arguments)
    synchronize(device)
    return time.perf_counter() - start, out


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def summary(seconds: list[float], new: int) -> dict[str, Any]:
    middle = statistics.median(seconds)
    return {
        "median": middle,
        "min": min(seconds),
        "max": max(seconds),
        "tokens_per_second": new / middle,
        "seconds": seconds,
    }


if __name__ == "__main__":
    typer.run(main)
