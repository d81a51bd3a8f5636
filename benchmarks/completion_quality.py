"""How good are the completions of a code model? Two measures over modules held out of its training.

    python benchmarks/completion_quality.py measure                                 # the shipped model
    python benchmarks/completion_quality.py measure --model run/model --show 5
    python benchmarks/completion_quality.py loss --held-out data/held_out.jsonl

`measure` completes 100 function headers with the preset balanced_code (512 new tokens, fixed seeds) and counts the
completions of which the longest prefix of whole lines that `ast` parses has a function body of three lines or more.
Only lines of code count: blank lines, comments and the docstring do not. A prompt is the `def` line or lines and the
docstring, if any, exactly as `demiurgic generate` would be given them: no other context, since a small model is mostly
asked so and since the preset's frequency penalty counts the prompt's tokens too. A method is shown dedented.

`choose` made the committed prompts: functions of the modules in `examples/tiny_held_out.txt` with a real body of three
to forty lines, ordered by the SHA-256 of their text, at most three of a module.

`loss` is the mean cross-entropy of held-out documents as they are, each alone, in nats per token and bits per byte.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import demiurgic
from demiurgic.tokenizer import Tokenizer

PROMPTS = Path(__file__).with_name("completion_prompts.json")
SHIPPED = Path(demiurgic.__file__).parent / "assets" / "tiny"
WANTED_LINES, PROMPT_COUNT = 3, 100

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


def parsed_body_lines(text: str) -> int:
    """Lines of code in the body of the first function of the longest prefix of whole lines that `ast` parses."""
    lines = text.split("\n")
    for end in range(len(lines), 0, -1):
        try:
            tree = ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        function = tree.body[0] if tree.body else None
        return len(body_lines(function, lines)) if isinstance(function, ast.FunctionDef) else 0
    return 0


def body_lines(function: ast.FunctionDef, lines: list[str]) -> list[str]:
    """The function's lines of code after its header and docstring, without blank lines and comments."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body or function.end_lineno is None:
        return []
    covered = lines[body[0].lineno - 1 : function.end_lineno]
    return [line for line in covered if line.strip() and not line.lstrip().startswith("#")]


def whole_lines(text: str, ended: bool) -> str:
    """`text` up to its last line end, if the model did not end it itself: a line cut by the limit is not whole."""
    return text if ended else text.rpartition("\n")[0]


def header(function: ast.FunctionDef, lines: list[str]) -> str:
    """The prompt: from `def` to the colon, or to the end of the docstring."""
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        return "\n".join(lines[: first.end_lineno])
    return "\n".join(lines[: first.lineno - 1]).rstrip()


def complete(model: Any, tokenizer: Tokenizer, prompts: list[str], seed: int) -> list[tuple[str, bool, float]]:
    """For each prompt the prompt with its completion, whether the model ended it, and its repetition."""
    options = demiurgic.GenerationConfig.balanced_code().to_dict()
    ids = tokenizer.encode(prompts, add_bos=True)
    out = demiurgic.generate(model, ids, **options, seed=seed, return_dict_in_generate=True)
    return [
        (prompt + tokenizer.decode(completion), reason == "eos", repeated_4_grams(completion))
        for prompt, completion, reason in zip(prompts, out.completions, out.finish_reasons, strict=True)
    ]


def repeated_4_grams(ids: list[int]) -> float:
    """Share of 4-grams that occurred before in the same row (arXiv:1908.04319)."""
    grams = list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@app.command()
def measure(
    model: Annotated[Path, typer.Option(help="folder of the model")] = SHIPPED,
    prompts: Annotated[Path, typer.Option(help="JSON list of {module, prompt}")] = PROMPTS,
    seed: Annotated[int, typer.Option(help="row i of repeat r uses a seed derived from seed + r and i")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="whole passes over the prompts, to see the spread")] = 1,
    dtype: Annotated[str, typer.Option(help="parameters' dtype")] = "float32",
    show: Annotated[int, typer.Option(min=0, help="print so many completions")] = 0,
) -> None:
    """Count the completions with three parsed lines of body or more."""
    network, tokenizer = demiurgic.DemiurgicForCausalLM.from_pretrained(model, dtype=dtype), Tokenizer(model)
    asked = [row["prompt"] for row in json.loads(prompts.read_text())]
    good, lengths, ends, repetition, started = [], [], 0, [], time.perf_counter()
    for repeat in range(repeats):
        answers = complete(network, tokenizer, asked, seed + repeat)
        counts = [parsed_body_lines(whole_lines(text, ended)) for text, ended, _ in answers]
        good.append(sum(count >= WANTED_LINES for count in counts))
        lengths += counts
        ends += sum(ended for _, ended, _ in answers)
        repetition += [repeated for *_, repeated in answers]
        print(f"seed {seed + repeat}: {good[-1]} of {len(asked)} completions have {WANTED_LINES} parsed lines or more")
        for (text, _, _), count in list(zip(answers, counts, strict=True))[:show]:
            print(f"--- {count} lines\n{text}")
    row = {
        "benchmark": "completion_quality",
        "model": str(model),
        "dtype": dtype,
        "prompts": len(asked),
        "seed": seed,
        "good": good,
        "median_parsed_lines": statistics.median(lengths),
        "ended_by_model": ends / len(lengths),
        "repeated_4_grams": round(statistics.mean(repetition), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(row))


@app.command()
def loss(
    held_out: Annotated[Path, typer.Option(help="held_out.jsonl of examples/prepare_tiny_data.py")],
    model: Annotated[Path, typer.Option(help="folder of the model")] = SHIPPED,
    dtype: Annotated[str, typer.Option(help="parameters' dtype")] = "float32",
) -> None:
    """Mean cross-entropy of held-out documents, each from bos to eos, cut at the model's context."""
    network, tokenizer = demiurgic.DemiurgicForCausalLM.from_pretrained(model, dtype=dtype), Tokenizer(model)
    nats, tokens, size = 0.0, 0, 0
    rows = [json.loads(line)["text"] for line in held_out.read_text().splitlines()]
    for text in rows:
        ids = [*tokenizer.encode(text, add_bos=True), *tokenizer.eos_token_ids[:1]]
        ids = ids[: network.config.max_position_embeddings]
        with torch.inference_mode():
            mean = network(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        nats, tokens = nats + float(mean) * (len(ids) - 1), tokens + len(ids) - 1
        size += len(tokenizer.decode(ids).encode())
    row = {
        "benchmark": "held_out_loss",
        "model": str(model),
        "dtype": dtype,
        "documents": len(rows),
        "tokens": tokens,
        "nats_per_token": round(nats / tokens, 4),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
    }
    print(json.dumps(row))


@app.command()
def choose(
    held_out: Annotated[Path, typer.Option(help="held_out.jsonl of examples/prepare_tiny_data.py")],
    prompts: Annotated[Path, typer.Option(help="JSON file to write")] = PROMPTS,
) -> None:
    """Choose the prompts; needed once."""
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    chosen, of_module = [], Counter[str]()
    for row in rows:
        function, lines = ast.parse(row["text"]).body[0], row["text"].split("\n")
        if row["kind"] != "function" or not isinstance(function, ast.FunctionDef) or function.decorator_list:
            continue
        prompt = header(function, lines)
        if not WANTED_LINES <= len(body_lines(function, lines)) <= 40 or of_module[row["module"]] == 3:
            continue
        if prompt not in (other["prompt"] for other in chosen):
            of_module[row["module"]] += 1
            chosen.append({"module": row["module"], "prompt": prompt})
    prompts.write_text(json.dumps(chosen[:PROMPT_COUNT], indent=1) + "\n")
    print(f"{min(len(chosen), PROMPT_COUNT)} prompts of {len(chosen)} eligible functions in {prompts}")


if __name__ == "__main__":
    app()
