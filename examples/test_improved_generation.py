"""A tour of generation: every strategy and preset, the cache on against off, and the other features.

    python examples/test_improved_generation.py             # a small test model with random weights
    python examples/test_improved_generation.py tiny        # the model that ships with demiurgic
    python examples/test_improved_generation.py CHECKPOINT  # a folder with config.json, weights and tokenizer.json

It prints tables, and exits with 1 if a feature did not do what it promises. The test model has learned nothing, so
what it writes is noise: only the other two say something about quality.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import demiurgic
from demiurgic import DemiurgicConfig, DemiurgicForCausalLM, GenerationConfig, GenerationOutput
from demiurgic.engine import Generation
from demiurgic.text_stream import TextStream
from demiurgic.tokenizer import Tokenizer

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "temperature 1": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "top-k 20": {"top_k": 20, "top_p": 1.0},
    "top-p 0.9": {"top_k": 0, "top_p": 0.9},
    "min-p 0.1": {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
    "typical-p 0.9": {"top_k": 0, "typical_p": 0.9},
    "top-k, top-p and min-p": {"top_k": 40, "top_p": 0.95, "min_p": 0.02},
}
PRESETS = ("greedy", "balanced_code", "precise_code", "creative_code", "natural_text", "completion_fim")
MARKS = {True: "yes", False: "NO", None: "-"}


class Feature(NamedTuple):
    """One line of the table of features."""

    name: str
    holds: bool | None  # None: nothing exact is promised
    shown: str


class Demo:
    """A model, a prompt, and calls of generate that end in the same way."""

    def __init__(self, model: DemiurgicForCausalLM, tokenizer: Tokenizer, prompt: str, new_tokens: int) -> None:
        self.model, self.tokenizer, self.new_tokens = model, tokenizer, new_tokens
        self.prompt = tokenizer.encode(prompt, add_bos=tokenizer.bos_token_id is not None)

    def generate(self, prompts: list[list[int]] | None = None, **options: Any) -> GenerationOutput:
        """The whole result; rows have new_tokens tokens (EOS is off) and the seed 1 unless `options` say otherwise."""
        fixed = {"max_new_tokens": self.new_tokens, "eos_token_id": [], "seed": 1, "return_dict_in_generate": True}
        return self.model.generate(prompts or [self.prompt], **(fixed | options))

    def greedy(self, **options: Any) -> list[int]:
        return self.generate(do_sample=False, **options).completions[0]


def make_model() -> tuple[DemiurgicForCausalLM, Tokenizer]:
    """Two layers with random weights, always the same, and the shipped tokenizer."""
    _, tokenizer = demiurgic.load("tiny")
    config = DemiurgicConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DemiurgicForCausalLM(config).eval(), tokenizer


def strategies_table(demo: Demo) -> Table:
    table = Table("strategy", "tokens", "tokens/s", "mean logprob", "text", title="Strategies and presets")
    calls: dict[str, dict[str, Any]] = dict(STRATEGIES)
    for name in PRESETS:
        calls[f"preset {name}"] = {"generation_config": getattr(GenerationConfig, name)()}
    for name, options in calls.items():
        result = demo.generate(**options)
        speed, logprob = result.timings["tokens_per_second"], result.logprobs.nanmean().item()
        text = Text(repr(demo.tokenizer.decode(result.completions[0])))
        table.add_row(name, str(result.lengths[0]), f"{speed:.0f}", f"{logprob:.2f}", text)
    return table


def features(demo: Demo) -> Iterator[Feature]:
    yield cache(demo)
    yield seeds(demo)
    yield copies(demo)
    yield batch(demo)
    yield from penalties(demo)
    yield from bans(demo)
    yield stop(demo)
    yield streaming(demo)


def cache(demo: Demo) -> Feature:
    start = time.perf_counter()
    cached = demo.greedy()
    middle = time.perf_counter()
    plain = demo.greedy(use_cache=False)
    end = time.perf_counter()
    on, off = middle - start, end - middle
    return Feature("cache on = off", cached == plain, f"{on:.3f} s on, {off:.3f} s off: {off / on:.1f} times")


def seeds(demo: Demo) -> Feature:
    first, again, other = (demo.generate(temperature=1.0, seed=seed).completions for seed in (7, 7, 8))
    shown = f"7 again: the same tokens; 8: {'the same' if other == first else 'others'}"
    return Feature("a seed repeats its tokens", first == again, shown)


def copies(demo: Demo) -> Feature:
    rows = demo.generate(temperature=1.0, num_return_sequences=3)
    alone = demo.generate(temperature=1.0, seed=[rows.seeds[2]])
    shown = f"{len(set(map(tuple, rows.completions)))} different ones; the last alone, with its seed, is the same"
    return Feature("3 copies, each with a seed", rows.completions[2] == alone.completions[0], shown)


def batch(demo: Demo) -> Feature:
    prompts = [demo.prompt, demo.prompt[:2], demo.prompt * 2]
    together = demo.generate(prompts, do_sample=False).completions
    alone = [demo.generate([prompt], do_sample=False).completions[0] for prompt in prompts]
    return Feature("prompts of any lengths", together == alone, f"{[len(p) for p in prompts]} tokens: as each alone")


def penalties(demo: Demo) -> Iterator[Feature]:
    before, after = len(set(demo.greedy())), len(set(demo.greedy(repetition_penalty=1.3)))
    yield Feature("repetition_penalty 1.3", None, f"{before} distinct tokens of {demo.new_tokens} become {after}")
    for name in ("frequency_penalty", "presence_penalty"):  # 100 is more than logits differ by
        new = demo.greedy(**{name: 100.0})
        distinct = len(set(new) - set(demo.prompt))
        yield Feature(f"{name} 100", distinct == len(new), f"{distinct} distinct tokens, none of the prompt")
    ids = demo.prompt + demo.greedy(no_repeat_ngram_size=2)
    pairs = list(pairwise(ids))
    new = pairs[len(demo.prompt) - 1 :]
    holds = all(pairs.count(pair) == 1 for pair in new)
    yield Feature("no_repeat_ngram_size 2", holds, f"{len(new)} new pairs, none seen before")


def bans(demo: Demo) -> Iterator[Feature]:
    first = demo.greedy()[0]
    name = repr(demo.tokenizer.decode([first]))
    yield Feature("bad_token_ids", first not in demo.greedy(bad_token_ids=[first]), f"never {name}")
    biased = demo.greedy(logit_bias={first: 1000.0})
    yield Feature("logit_bias +1000", set(biased) == {first}, f"only {name}")


def stop(demo: Demo) -> Feature:
    stop_at = demo.greedy()[0]
    ended = demo.generate(do_sample=False, stop_token_ids=[stop_at])
    longer = demo.generate(do_sample=False, stop_token_ids=[stop_at], min_new_tokens=2)
    holds = ended.finish_reasons == ["stop"] and ended.lengths == [1] and longer.lengths[0] >= 2
    return Feature("stop ids, min_new_tokens", holds, f"ends after 1; after {longer.lengths[0]} with min_new_tokens=2")


def streaming(demo: Demo) -> Feature:
    """Generation is generate in steps: text can be shown as soon as it is final."""
    config = GenerationConfig(max_new_tokens=demo.new_tokens, do_sample=False, eos_token_id=[])
    stream, pieces, seen = TextStream(demo.tokenizer), list[str](), 0
    with Generation(demo.model, [demo.prompt], config=config) as generation:
        under_way = True
        while under_way:
            under_way = generation.advance()
            new = generation.tokens(0, seen)
            seen += len(new)
            pieces.append(stream.feed(new))
    pieces.append(stream.end())
    whole = demo.tokenizer.decode(demo.greedy())
    return Feature("streaming", "".join(pieces) == whole, f"{len(list(filter(None, pieces)))} pieces of text")


def features_table(rows: list[Feature]) -> Table:
    table = Table("feature", "holds", "shown", title="Features")
    for row in rows:
        table.add_row(row.name, MARKS[row.holds], Text(row.shown))
    return table


def logprobs_table(demo: Demo, tokens: int = 8) -> Table:
    """`logprobs` is the model's opinion, `processed_logprobs` what temperature and filters made of it."""
    table = Table("first tokens", "by the model", "after processing", title="Probabilities, balanced_code")
    result = demo.generate(generation_config=GenerationConfig.balanced_code())
    model, processed = result.logprobs[0].exp().tolist(), result.processed_logprobs[0].exp().tolist()
    for token, raw, final in list(zip(result.completions[0], model, processed, strict=True))[:tokens]:
        table.add_row(Text(repr(demo.tokenizer.decode([token]))), f"{raw:.3f}", f"{final:.3f}")
    return table


def main(
    checkpoint: Annotated[str | None, typer.Argument(help="a folder, or tiny; without it, a test model")] = None,
    prompt: Annotated[str, typer.Option(help="what is continued")] = "def fibonacci(n):\n",
    new_tokens: Annotated[int, typer.Option(min=4, help="tokens of each row")] = 48,
) -> None:
    """Show every strategy, preset and feature of generation on a checkpoint or a test model."""
    console = Console()
    model, tokenizer = make_model() if checkpoint is None else demiurgic.load(checkpoint)
    console.print(f"{checkpoint or 'A test model with random weights'}: {model.num_parameters():,} parameters")
    demo = Demo(model, tokenizer, prompt, new_tokens)
    demo.generate()  # the first call also loads libraries and starts threads
    console.print(strategies_table(demo))
    rows = list(features(demo))
    console.print(features_table(rows))
    console.print(logprobs_table(demo))
    if any(row.holds is False for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
