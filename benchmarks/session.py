"""What a session's next turn costs, and its fingerprint.

    python benchmarks/session.py               # S in both types
    python benchmarks/session.py --models XS   # is it right?

A chat of `--context` tokens goes on by `--new` tokens, after which one token is generated. In turn:

- fresh: a call without a session computes the whole context and the new tokens;
- turn: a call in a session that holds the context, with other new tokens each time;
- tokens: a call without a session on the new tokens alone: less than they cost behind the context;
- fingerprint: the pass over the weights that each call of a session begins with.

So the turn is about tokens + fingerprint, which the table shows as "at best". The bandwidth of the fingerprint is that
of the weights' bytes over its time, beside what the machine reads in a loop that does nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import chosen, finish, read_bandwidth, rounds_of, summary, surroundings
from sizes import DTYPES, SIZES, random_model, random_prompts

import demiurgic
from demiurgic import DemiurgicForCausalLM

GREEDY: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": []}


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "float32,bfloat16",
    context: Annotated[int, typer.Option(min=1, max=1900, help="Tokens that the session holds.")] = 1000,
    new: Annotated[int, typer.Option(min=1, max=100, help="Tokens of the turn.")] = 32,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each measurement.")] = 5,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    torch.set_num_threads(threads)
    results = []
    for name, dtype in itertools.product(chosen("--models", models, SIZES), chosen("--dtypes", dtypes, DTYPES)):
        results.append(measured(random_model(name, dtype), context, new, rounds) | {"model": name, "dtype": dtype})
    print(f"{'':14} {'fresh':>9} {'turn':>9} {'at best':>9} {'fingerprint':>11}  bandwidth, of a plain read")
    for row in results:
        fresh, turn, tokens, passed = (row[key]["median"] * 1e3 for key in ("fresh", "turn", "tokens", "fingerprint"))
        rates = f"{row['fingerprint_bandwidth'] / 1e9:.1f} of {row['read_bandwidth'] / 1e9:.1f} GB/s"
        print(
            f"{row['model']:>5} {row['dtype']:>8} {fresh:>6.1f} ms {turn:>6.1f} ms {tokens + passed:>6.1f} ms "
            f"{passed:>8.1f} ms  {rates}"
        )
    report = {"benchmark": "session", "context": context, "new": new, "rounds": rounds, "results": results}
    finish(report | surroundings(torch.device("cpu")), save)


def measured(model: DemiurgicForCausalLM, context: int, new: int, rounds: int) -> dict[str, Any]:
    vocab = model.config.vocab_size
    (known,) = random_prompts(vocab, 1, context, seed=0)
    turns = iter(random_prompts(vocab, 10 * (rounds + 1), new, seed=1))
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    with demiurgic.session(model) as session:
        session.prefill(known)
        before = session.info
        contenders: dict[str, Callable[[], Any]] = {
            "fresh": lambda: model.generate([known + next(turns)], **GREEDY),
            "turn": lambda: session.generate([known + next(turns)], **GREEDY),
            "tokens": lambda: model.generate([next(turns)], **GREEDY),
            "fingerprint": lambda: session.engine_for(model),
        }
        seconds = rounds_of(contenders, rounds)
        computed = session.info.computed_tokens - before.computed_tokens
    assert computed == (rounds + 1) * new, f"a turn computed {computed / (rounds + 1)} tokens instead of {new}"
    fastest = min(seconds["fingerprint"])
    return {
        **{name: summary(values) for name, values in seconds.items()},
        "weight_bytes": num_bytes,
        "fingerprint_bandwidth": num_bytes / fastest,
        "read_bandwidth": read_bandwidth(num_bytes, torch.get_num_threads())["small"],
    }


if __name__ == "__main__":
    typer.run(main)
