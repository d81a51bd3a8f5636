"""Generation as part of the evaluation of a training run: no export, no second process, no copy of the weights.

    python examples/eval_in_training.py

A small model learns from the source of Python's own standard library. Every few steps the loop measures the loss on
files that are held out, and lets the model continue a prompt: `model.generate(…, seed=step)`. The engine reads the
parameters where the optimizer updates them, keeps the model in train mode and draws nothing from torch's generator
since a seed is given; so the run is the same, bit for bit, as one that never generates.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import demiurgic
from demiurgic import DemiurgicConfig, DemiurgicForCausalLM
from demiurgic.tokenizer import Tokenizer

PROMPT = "def read_file(path):\n    "


def read_data(tokenizer: Tokenizer, files: int, length: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows, int64 [rows, length]: every tenth file of the standard library is held out."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    held_out = [text for i, text in enumerate(texts) if i % 10 == 9]
    training = [text for i, text in enumerate(texts) if i % 10 != 9]
    return rows_of(tokenizer, training, length), rows_of(tokenizer, held_out, length)


def rows_of(tokenizer: Tokenizer, texts: list[str], length: int) -> Tensor:
    """The texts one after the other, each behind a BOS, cut into rows [rows, length]."""
    ids = torch.tensor([i for text in tokenizer.encode(texts, add_bos=True) for i in text])
    return ids[: len(ids) // length * length].view(-1, length)


def evaluate(model: DemiurgicForCausalLM, tokenizer: Tokenizer, held_out: Tensor, step: int) -> tuple[float, str]:
    """The held-out loss in nats a token, and a sample from the weights as they are at this step."""
    model.eval()
    with torch.no_grad():
        loss = model(held_out[:16], labels=held_out[:16]).loss.item()
    model.train()
    prompt = tokenizer.encode(PROMPT, add_bos=True)
    completion = model.generate([prompt], 40, temperature=0.7, seed=step)[0, len(prompt) :]
    return loss, tokenizer.decode(completion)


def main(
    steps: Annotated[int, typer.Option(min=1)] = 160,
    evaluate_every: Annotated[int, typer.Option(min=1)] = 40,
    batch: Annotated[int, typer.Option(min=1, help="rows of a step")] = 8,
    length: Annotated[int, typer.Option(min=2, max=256, help="tokens of a row")] = 128,
    hidden_size: Annotated[int, typer.Option(help="a multiple of 8")] = 128,
    layers: Annotated[int, typer.Option(min=1)] = 3,
    files: Annotated[int, typer.Option(min=10, help="of the standard library to learn from")] = 80,
    rate: Annotated[float, typer.Option(help="learning rate")] = 3e-3,
    seed: int = 0,
) -> None:
    """Train a small model on the standard library, and generate from it at every evaluation."""
    torch.manual_seed(seed)
    _, tokenizer = demiurgic.load("tiny")
    training, held_out = read_data(tokenizer, files, length)
    config = DemiurgicConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=hidden_size, intermediate_size=2 * hidden_size,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    model = DemiurgicForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    print(f"{model.num_parameters():,} parameters, {training.numel():,} tokens of {files} files")
    for step in range(steps + 1):
        if step % evaluate_every == 0 or step == steps:
            loss, sample = evaluate(model, tokenizer, held_out, step)
            print(f"step {step}: held-out loss {loss:.3f}\n    {sample!r}", flush=True)
        rows = training[torch.randint(len(training), (batch,))]
        model(rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    typer.run(main)
