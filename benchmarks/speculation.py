"""What speculation brings where text repeats itself, and what it costs elsewhere: the shipped model, one row at a time.

    python benchmarks/speculation.py                                  # speculate="ngram"
    python benchmarks/speculation.py --rounds 1 --prompts 1 --new 8   # is it right?
    python benchmarks/speculation.py --draft-layers 1                 # a draft model of random weights: no draft comes
    python benchmarks/speculation.py --target-layers 50               # one of which almost every draft comes
    python benchmarks/speculation.py --save benchmarks/results/speculation.json

Four kinds of work, each greedy, sampled (the defaults: temperature 0.8, top_k 50, top_p 0.95) and sampled hot
(temperature 1.5 alone), where next to nothing repeats itself:

- `edit`: a file, the request to write it again with a change, and its first lines; `method`: a class whose methods are
  alike, and the header of another (speculation_prompts.json).
- `header`: the headers of functions on which completion_quality.py measures. They repeat nothing.
- `random`: prompts of random tokens.

`--target-layers` adds layers to the shipped model that change nothing, as a stand-in for a larger model, and lets the
shipped model draft for it. Once it has read the whole prompt its drafts are all right, so this is the most that a draft
model of that size can bring.

Every prompt is completed without speculation and with it in turns (A B A B ...), from the prompt to the row's end: its
EOS or `--new` tokens. A prompt's time is the least of its rounds, a kind's the sum over its prompts; a ratio above 1 is
faster with speculation. The tokens are compared: they are the same. The last line is one JSON object.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import finish, surroundings, timed

import demiurgic
from demiurgic import DemiurgicForCausalLM
from demiurgic.tokenizer import Tokenizer

REPEATING = Path(__file__).with_name("speculation_prompts.json")
HEADERS = Path(__file__).with_name("completion_prompts.json")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {},
    "hot": {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
}


def main(
    prompts: Annotated[int, typer.Option(help="Most prompts of a kind.", min=1)] = 8,
    new: Annotated[int, typer.Option(help="Most new tokens.", min=1)] = 200,
    rounds: Annotated[int, typer.Option(help="Turns of each prompt.", min=1)] = 5,
    kinds: Annotated[str, typer.Option(help="Of edit, method, header, random.")] = "edit,method,header,random",
    draft_layers: Annotated[int, typer.Option(help="Of a random draft model; 0: speculate='ngram'.", min=0)] = 0,
    target_layers: Annotated[int, typer.Option(help="Of a model that the shipped one drafts for.", min=0)] = 0,
    save: Annotated[Path | None, typer.Option(help="A file for the report.")] = None,
) -> None:
    model, tokenizer = demiurgic.load("tiny")
    speculation: dict[str, Any] = {"speculate": "ngram"}
    source, target = "ngram", model
    if draft_layers:
        speculation = {"draft_model": random_like(model, draft_layers)}
        source = f"random draft model of {draft_layers} layers"
    if target_layers:
        speculation, target = {"draft_model": model}, padded(model, target_layers)
        source = f"the shipped model for itself with {target_layers} layers"
    print(f"{'kind':8}{'mode':9}{'without':>11}{'with':>11}{'ratio':>7}{'tokens':>8}{'drafted':>9}{'accepted':>9}")
    results = []
    for kind, ids in prompts_of(tokenizer, model.config.vocab_size, prompts).items():
        if kind not in kinds.split(","):
            continue
        for mode, options in MODES.items():
            options = {"max_new_tokens": new, "seed": 0, **options}
            cells = [measure(target, prompt, rounds, options, speculation) for prompt in ids]
            results.append({"kind": kind, "mode": mode, **summed(cells)})
            print_row(results[-1])
    report = {"benchmark": "speculation", "speculate": source, "model": "tiny", "new": new, "rounds": rounds}
    finish({**report, **surroundings(torch.device("cpu")), "results": results}, save)


def random_like(model: DemiurgicForCausalLM, layers: int) -> DemiurgicForCausalLM:
    """A model of the same widths with this many layers, whose drafts never come."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return type(model)(config).to(next(model.parameters()).dtype).eval()


def padded(model: DemiurgicForCausalLM, layers: int) -> DemiurgicForCausalLM:
    """The same model with this many layers: those that are added give zeros to what the others have made."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = max(layers, config.num_hidden_layers)
    deep = type(model)(config).to(next(model.parameters()).dtype).eval()
    deep.load_state_dict(model.state_dict(), strict=False)
    for layer in deep.model.layers[model.config.num_hidden_layers :]:
        for product in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(product.weight)
    return deep


def prompts_of(tokenizer: Tokenizer, vocab: int, most: int) -> dict[str, list[list[int]]]:
    repeating, headers = json.loads(REPEATING.read_text()), json.loads(HEADERS.read_text())
    texts = {kind: [each["prompt"] for each in repeating if each["task"] == kind] for kind in ("edit", "method")}
    texts["header"] = [each["prompt"] for each in headers]
    ids = {kind: [tokenizer.encode(text) for text in group[:most]] for kind, group in texts.items()}
    noise = torch.randint(6, vocab, (most, 200), generator=torch.Generator().manual_seed(0))
    return {**ids, "random": noise.tolist()}


def measure(
    model: DemiurgicForCausalLM, ids: list[int], rounds: int, options: dict[str, Any], speculation: dict[str, Any]
) -> dict[str, Any]:
    """Seconds of one prompt without speculation and with it, and its tokens and drafts."""
    outputs: dict[str, Any] = {}

    def complete(name: str, **how: Any) -> None:
        outputs[name] = model.generate([ids], return_dict_in_generate=True, **options, **how)

    complete("without")  # to warm up
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        seconds["without"].append(timed(lambda: complete("without")))
        seconds["with"].append(timed(lambda: complete("with", **speculation)))
    assert outputs["with"].completions == outputs["without"].completions
    counts = {name: getattr(outputs["with"], name)[0] for name in ("lengths", "drafted", "accepted")}
    return {**{name: min(times) for name, times in seconds.items()}, **counts}


def summed(cells: list[dict[str, Any]]) -> dict[str, Any]:
    total = {name: sum(cell[name] for cell in cells) for name in cells[0]}
    total["tokens"] = total.pop("lengths")
    return {**total, "ratio": total["without"] / total["with"]}


def print_row(cell: dict[str, Any]) -> None:
    times = f"{cell['without'] * 1e3:8.1f} ms{cell['with'] * 1e3:8.1f} ms{cell['ratio']:7.2f}"
    print(
        f"{cell['kind']:8}{cell['mode']:9}{times}{cell['tokens']:8}{cell['drafted']:9}{cell['accepted']:9}", flush=True
    )


if __name__ == "__main__":
    typer.run(main)
