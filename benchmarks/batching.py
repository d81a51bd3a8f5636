"""Continuous batching and shared prompts: what they cost beside what they would cost at best.

    python benchmarks/batching.py                             # S in both types
    python benchmarks/batching.py --models XS --prompts 8     # is it right?

**Uneven requests.** Prompts of 10 to 500 tokens and outputs of 10 to 200, drawn with a fixed seed, one call each; at
most `--running` calls are under way at a time, and when one ends the next begins. The total time is compared with

    ideal = (seconds to read all prompts) + (output tokens after each call's first) * (seconds of a token at full batch)

where all prompts are read in one call that gives one token each, and a token at full batch is a step of `--running`
equal rows over their number, their prompts as long as the average row is halfway through its output; only steps count
that compute one token of each and nothing else. Both are measured in the same rounds as the total. So the ideal is the
sum of the work with never an idle place in the batch: no last rows that run alone, no waiting.

**A shared prompt.** num_return_sequences copies of a prompt of 1,000 tokens, one new token each, beside the prompt
alone; the engine's counters tell how many tokens were computed: the prompt once, and its last token for each further
copy.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import chosen, finish, rounds_of, summary, surroundings
from sizes import DTYPES, FIRST_WORD, SIZES, random_model, random_prompts

import demiurgic
from demiurgic import DemiurgicForCausalLM, GenerationConfig
from demiurgic.engine import DEFAULT_STEP_TOKENS, Generation

PROMPT_TOKENS, OUTPUT_TOKENS = (10, 500), (10, 200)  # least and most of a request
STEPS = 16  # of which the time of a token at full batch is measured

Request = tuple[list[int], int]  # a prompt and its number of new tokens


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    prompts: Annotated[int, typer.Option(min=1, help="Requests.")] = 64,
    running: Annotated[int | None, typer.Option(min=1, help="Most requests under way. Default: all.")] = None,
    copies: Annotated[int, typer.Option(min=2, help="Copies of the shared prompt.")] = 16,
    shared: Annotated[int, typer.Option(min=2, max=2000, help="Tokens of the shared prompt.")] = 1000,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each measurement.")] = 3,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    torch.set_num_threads(threads)
    results = []
    names, kinds = chosen("--models", models, SIZES), chosen("--dtypes", dtypes, DTYPES)
    for name, dtype in itertools.product(names, kinds):
        model = random_model(name, dtype)
        result = {"model": name, "dtype": dtype, "threads": threads, "rounds": rounds}
        result["uneven"] = uneven(
            model, draw_requests(prompts, model.config.vocab_size), min(running or prompts, prompts), rounds
        )
        result["shared"] = shared_prompt(model, shared, copies, rounds)
        print_result(result)
        results.append(result)
    finish({"benchmark": "batching", "results": results, **surroundings(torch.device("cpu"))}, save)


def draw_requests(count: int, vocab: int) -> list[Request]:
    dice = random.Random(0)
    return [
        (dice.choices(range(FIRST_WORD, vocab), k=dice.randint(*PROMPT_TOKENS)), dice.randint(*OUTPUT_TOKENS))
        for _ in range(count)
    ]


def greedy(new: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=[])


def uneven(model: DemiurgicForCausalLM, requests: list[Request], running: int, rounds: int) -> dict[str, Any]:
    mean_prompt = sum(len(prompt) for prompt, _ in requests) / len(requests)
    mean_output = sum(new for _, new in requests) / len(requests)
    length = max(1, round(mean_prompt + mean_output / 2 - STEPS / 2))
    full = random_prompts(model.config.vocab_size, running, length, seed=1)
    steps: list[float] = []
    seconds = rounds_of(
        {
            "total": lambda: serve(model, requests, running),
            "prompts": lambda: demiurgic.generate(model, [p for p, _ in requests], generation_config=greedy(1)),
            "full batch": lambda: steps.extend(full_batch_steps(model, full)),
        },
        rounds,
    )
    total, prompts, step = summary(seconds["total"]), summary(seconds["prompts"]), summary(steps)
    output_tokens = sum(new for _, new in requests)
    ideal = prompts["median"] + (output_tokens - len(requests)) * step["median"] / running
    return {
        "requests": len(requests),
        "running": running,
        "prompt_tokens": sum(len(prompt) for prompt, _ in requests),
        "output_tokens": output_tokens,
        "total": total,
        "prompts": prompts,
        "full_batch_step": step,
        "full_batch_length": length,
        "ideal": ideal,
        "times_ideal": total["median"] / ideal,
        "tokens_per_second": output_tokens / total["median"],
    }


def full_batch_steps(model: DemiurgicForCausalLM, prompts: list[list[int]]) -> list[float]:
    """Seconds of the steps that compute one token of each row and nothing else."""
    steps_to_read = 1 + sum(map(len, prompts)) // DEFAULT_STEP_TOKENS  # meanwhile the first rows go on
    seconds = []
    with Generation(model, prompts, config=greedy(1 + steps_to_read + STEPS)) as call:
        more, computed = True, 0
        while more:
            start = time.perf_counter()
            more = call.advance()
            elapsed, before, computed = (
                time.perf_counter() - start,
                computed,
                call._engine.counters()["num_computed_tokens"],
            )
            if computed - before == len(prompts):
                seconds.append(elapsed)
    return seconds


def serve(model: DemiurgicForCausalLM, requests: list[Request], running: int) -> None:
    """Every request as a call of its own, `running` at a time; the calls share the model's engine and its steps."""
    late = iter(requests)
    under_way = begun(model, late, running)
    while under_way:
        under_way[0].advance()  # a step for all of them
        going_on = [call for call in under_way if call.finish_reason(0) == "none"]
        under_way = going_on + begun(model, late, running - len(going_on))


def begun(model: DemiurgicForCausalLM, requests: Iterator[Request], count: int) -> list[Generation]:
    return [Generation(model, prompt, config=greedy(new)) for prompt, new in itertools.islice(requests, count)]


def shared_prompt(model: DemiurgicForCausalLM, length: int, copies: int, rounds: int) -> dict[str, Any]:
    prompt = random_prompts(model.config.vocab_size, 1, length, seed=2)
    counters: dict[str, dict[str, int]] = {}

    def run(name: str, count: int) -> None:
        config = greedy(1).replace(num_return_sequences=count)
        with Generation(model, prompt, config=config) as generation:
            while generation.advance():
                pass
            counters[name] = generation._engine.counters()

    seconds = rounds_of({"alone": lambda: run("alone", 1), "copies": lambda: run("copies", copies)}, rounds)
    alone, together = summary(seconds["alone"]), summary(seconds["copies"])
    return {
        "prompt_tokens": length,
        "copies": copies,
        "alone": alone,
        "together": together,
        "ratio": together["median"] / alone["median"],
        "computed_tokens": {name: counted["num_computed_tokens"] for name, counted in counters.items()},
    }


def print_result(result: dict[str, Any]) -> None:
    uneven, shared, computed = result["uneven"], result["shared"], result["shared"]["computed_tokens"]
    print(
        f"{result['model']} {result['dtype']}, {result['threads']} threads: {uneven['requests']} requests, at most "
        f"{uneven['running']} under way, {uneven['prompt_tokens']} + {uneven['output_tokens']} tokens\n"
        f"  total {uneven['total']['median']:.2f} s, {uneven['tokens_per_second']:.0f} tokens/s; "
        f"{uneven['times_ideal']:.2f} times the ideal of {uneven['ideal']:.2f} s: prompts "
        f"{uneven['prompts']['median']:.2f} s, then {uneven['full_batch_step']['median'] * 1e3:.1f} ms a step of "
        f"{uneven['running']}\n"
        f"  {shared['copies']} copies of a prompt of {shared['prompt_tokens']}: "
        f"{shared['together']['median'] * 1e3:.0f} ms, alone {shared['alone']['median'] * 1e3:.0f} ms, "
        f"{shared['ratio']:.2f} times; computed tokens {computed['copies']}, alone {computed['alone']}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
