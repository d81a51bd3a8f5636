"""What sampling costs: the share of a decoding step that all penalties, top_k and top_p take together.

    python benchmarks/sampling.py                                      # S, both types, 32k and 152k tokens, batch 1, 8
    python benchmarks/sampling.py --vocabs 32000 --batches 1 --new 8   # is it right?
    python benchmarks/sampling.py --save benchmarks/results/sampling.json   # cells of earlier runs in it stay

A cell is a vocabulary, a type of weights and a batch. Two things are measured, each interleaved within itself:

- Steps of generate, greedy and with everything on, take turns: `greedy` and `everything` are medians over the steps of
  all rounds. Of a small model with the same vocabulary they differ by the sampler alone, so their difference there is
  the sampler's time (`sampler`), and its share is sampler / (greedy + sampler) with the steps of the large model. The
  difference on the large model itself (`difference`) is in the report too: there the sampler finds its caches cold, but
  the step's own noise is of the same size.
- Beside it, on logits and token ids of the same shapes, the same options by Hugging Face's logits processors, softmax
  and multinomial (no frequency and presence penalty), and by a plain PyTorch function with a sort.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import chosen, counts, finish, rounds_of, summary, surroundings
from sizes import DTYPES, SIZES, Size, random_model, random_prompts
from torch import Tensor

from demiurgic import DemiurgicForCausalLM, GenerationConfig
from demiurgic.engine import Generation

SMALL = Size(layers=1, hidden=16, heads=1, kv_heads=1, ffn=16)
FILTERS = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {"greedy": {"do_sample": False}, "everything": FILTERS | PENALTIES}


def main(
    vocabs: Annotated[str, typer.Option(help="Sizes of the vocabulary, separated by commas.")] = "32000,152000",
    dtypes: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16.")] = "float32,bfloat16",
    batches: Annotated[str, typer.Option(help="Rows, separated by commas.")] = "1,8",
    model: Annotated[str, typer.Option(help=f"The model's size: {', '.join(SIZES)}.")] = "S",
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 128,
    new: Annotated[int, typer.Option(help="New tokens of each row.", min=2)] = 32,
    rounds: Annotated[int, typer.Option(help="Times that each is measured.", min=1)] = 5,
    save: Annotated[Path | None, typer.Option(help="A file for the report; its other cells stay.")] = None,
) -> None:
    [name] = chosen("--model", model, SIZES)
    results = []
    for vocab in counts("--vocabs", vocabs):
        for dtype in chosen("--dtypes", dtypes, DTYPES):
            SIZES["large"], SIZES["small"] = (replace(size, vocab=vocab) for size in (SIZES[name], SMALL))
            models = {"large": random_model("large", dtype), "small": random_model("small", dtype)}
            for batch in counts("--batches", batches):
                results.append({"vocab": vocab, "dtype": dtype, "batch": batch, "model": name, "prompt": prompt})
                results[-1] |= measure(models, vocab, batch, prompt, new, rounds)
                print(line_of(results[-1]), flush=True)
    report = {"benchmark": "sampling", "options": OPTIONS["everything"], **surroundings(torch.device("cpu"))}
    finish(report | {"results": merged(results, save)}, save)


def measure(
    models: dict[str, DemiurgicForCausalLM], vocab: int, batch: int, prompt: int, new: int, rounds: int
) -> dict[str, Any]:
    prompts = random_prompts(vocab, batch, prompt, seed=0)
    large = steps_of(models["large"], prompts, new, rounds)
    small = steps_of(models["small"], prompts, new, rounds)
    sampler = statistics.median(small["everything"]) - statistics.median(small["greedy"])
    greedy, everything = (statistics.median(large[options]) for options in OPTIONS)
    logits = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.tensor(prompts)
    others: dict[str, Callable[[], Any]] = {"torch": lambda: by_sorting(logits, ids)}
    processors = hugging_face()
    if processors is not None:
        others["hugging_face"] = lambda: processors(ids, logits.clone()).softmax(-1).multinomial(1)
    return {
        "greedy": greedy,
        "everything": everything,
        "difference": everything - greedy,
        "sampler": sampler,
        "share": sampler / (greedy + sampler),
        "others": {name: summary(seconds) for name, seconds in rounds_of(others, 4 * rounds).items()},
    }


def steps_of(model: DemiurgicForCausalLM, prompts: list[list[int]], new: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of single steps of decoding, the first ones (which read the prompts) left out."""
    seconds: dict[str, list[float]] = {name: [] for name in OPTIONS}
    for round_number in range(rounds + 1):
        for name, options in OPTIONS.items():
            config = GenerationConfig(max_new_tokens=new, seed=round_number, eos_token_id=[], **options)
            with Generation(model, prompts, config=config, max_step_tokens=2**20) as generation:
                generation.advance()
                times = []
                while True:
                    start = time.perf_counter()
                    if not generation.advance():
                        break
                    times.append(time.perf_counter() - start)
            if round_number > 0:  # the first is to warm up
                seconds[name] += times
    return seconds


def hugging_face() -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        import transformers
    except ImportError:
        return None
    return transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(PENALTIES["repetition_penalty"]),
            transformers.TemperatureLogitsWarper(FILTERS["temperature"]),
            transformers.TopKLogitsWarper(FILTERS["top_k"]),
            transformers.TopPLogitsWarper(FILTERS["top_p"]),
        ]
    )


def by_sorting(logits: Tensor, ids: Tensor) -> Tensor:
    """The same options in plain PyTorch, as they are usually written. logits: [B, V]; ids: [B, T]"""
    num_seen = torch.zeros_like(logits).scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
    seen, penalty = num_seen > 0, PENALTIES["repetition_penalty"]
    logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    logits = logits - num_seen * PENALTIES["frequency_penalty"] - seen * PENALTIES["presence_penalty"]
    logits = logits / FILTERS["temperature"]
    kth = logits.topk(int(FILTERS["top_k"])).values[:, -1:]
    logits = logits.masked_fill(logits < kth, -torch.inf)
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    probabilities[probabilities.cumsum(-1) - probabilities >= FILTERS["top_p"]] = 0
    return order.gather(1, probabilities.multinomial(1))


def line_of(cell: dict[str, Any]) -> str:
    others = ", ".join(f"{name} {1e6 * cell['others'][name]['median']:.0f} us" for name in cell["others"])
    return (
        f"{cell['vocab']:>7} tokens, {cell['dtype']:>8}, batch {cell['batch']}: step {1e3 * cell['greedy']:.2f} ms, "
        f"sampler {1e6 * cell['sampler']:.0f} us = {100 * cell['share']:.2f} % of the step "
        f"(difference {1e6 * cell['difference']:.0f} us); {others}"
    )


def merged(results: list[dict[str, Any]], save: Path | None) -> list[dict[str, Any]]:
    """`results`, after the cells of an earlier report that are not among them."""

    def cell(result: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(result[key] for key in ("model", "vocab", "dtype", "batch", "prompt"))

    if save is None or not save.exists():
        return results
    earlier = json.loads(save.read_text())["results"]
    new = {cell(result) for result in results}
    return [result for result in earlier if cell(result) not in new] + results


if __name__ == "__main__":
    typer.run(main)
