"""Train the shipped model, or another small code model, and generate from it between the training steps.

    python examples/prepare_tiny_data.py --wheels wheels --stdlib --out data    # data once, see there
    python examples/train_tiny.py --data data --out run --steps 4000 --compile --bfloat16

The drop-in use of Demiurgic is `show_samples`: `model.generate(prompt, …, seed=step)` on the very model that is being
trained. The engine reads the parameters as they are now and leaves mode, gradients and the global random state alone,
so the loss curve is bit for bit the one of a run that never generates.

The learning rate warms up, stays, and falls to zero over the last `--decay` steps (arXiv:2405.18392). To end a
run earlier or later than planned, stop it (Ctrl-C saves) and start it again with another `--steps`: a run always
resumes from the checkpoint in `--out`, with its optimizers, random state and place in the data.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import demiurgic
from demiurgic.tokenizer import Tokenizer

PROMPTS = [
    "def fibonacci(n):",
    'def read_json(path):\n    """Return the object stored in a JSON file."""',
    "class Stack:",
]
FIM_SHARE, FIM_CHARS = 0.5, 1200  # half of the samples; a fill-in-the-middle sample should fit a training row


@dataclass
class Settings:
    """What a run is; written to its log."""

    steps: int
    decay: int
    warmup: int
    batch: int
    length: int
    rate: float
    z_loss: float
    seed: int
    bfloat16: bool
    compiled: bool


class DocumentStream:
    """An endless stream of token ids: documents in a new order each epoch, half of them as fill-in-the-middle.

    Document number n is tokenized with a generator seeded by n, so the place in the data is two things: the number of
    the next document and the ids already made from the last one.
    """

    def __init__(self, texts: list[str], tokenizer: Tokenizer, seed: int, fim_share: float = FIM_SHARE) -> None:
        self.texts, self.tokenizer, self.seed, self.fim_share = texts, tokenizer, seed, fim_share
        self.number, self.pending = 0, list[int]()
        self._order, self._epoch = list[int](), -1

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "pending": list(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.pending = state["number"], list(state["pending"])

    def next_batch(self, rows: int, length: int) -> Tensor:
        """The next rows * length ids, int64 [rows, length]."""
        while len(self.pending) < rows * length:
            self.pending += self._document()
        taken, self.pending = self.pending[: rows * length], self.pending[rows * length :]
        return torch.tensor(taken).view(rows, length)

    def _document(self) -> list[int]:
        epoch, place = divmod(self.number, len(self.texts))
        if epoch != self._epoch:
            self._order, self._epoch = list(range(len(self.texts))), epoch
            random.Random(f"{self.seed} order {epoch}").shuffle(self._order)
        chance = random.Random(f"{self.seed} document {self.number}")
        self.number += 1
        text = self.texts[self._order[place]]
        make = fim_sample if chance.random() < self.fim_share else plain_sample
        return [*make(text, self.tokenizer, chance), self.tokenizer.eos_token_id or 0]


def plain_sample(text: str, tokenizer: Tokenizer, chance: random.Random) -> list[int]:
    """bos and the text, tokenized in two parts, since a user's prompt may end inside of what BPE would merge."""
    cut = chance.randrange(len(text) + 1)
    if chance.random() < 0.5:
        cut = text.find("\n", cut) + 1 + chance.choice((0, -1))  # before or after a line's end
    head, tail = tokenizer.encode([text[: max(cut, 0)], text[max(cut, 0) :]])
    return [tokenizer.bos_token_id or 0, *head, *tail]


def fim_sample(text: str, tokenizer: Tokenizer, chance: random.Random) -> list[int]:
    """What `Tokenizer.fim` asks and the middle as its answer; cut anywhere, or half of the time at ends of lines."""
    window = chance.randrange(max(1, len(text) - FIM_CHARS))
    text = text[text.rfind("\n", 0, window) + 1 :][:FIM_CHARS]
    first, second = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    if chance.random() < 0.5:
        first, second = (max(text.find("\n", cut), 0) for cut in (first, second))
        first, second = min(first, second), max(first, second)
    return tokenizer.fim(text[:first], text[second:]) + tokenizer.encode(text[first:second])


def learning_rate(step: int, settings: Settings) -> float:
    """Factor of the peak rate: a linear rise, a plateau, a linear fall that ends just above zero."""
    left = settings.steps - step
    return min(1.0, (step + 1) / max(1, settings.warmup), left / max(1, settings.decay))


def make_optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for embedding and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.dim() == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]


def batch_losses(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and z-loss of ids [B, T].

    The z-loss, mean of log(sum(exp(logits)))^2 (arXiv:2204.02311), keeps logits near log-probabilities. A repetition
    penalty divides logits, so what it does depends on where they lie: at +9 it would take much from a closing bracket
    that occurred before, near 0 it takes little.
    """
    out = model(ids, labels=ids)
    return out.loss, out.logits.logsumexp(-1).square().mean()


class Trainer:
    """A model, its optimizers and its data; one step at a time, and all of it in one checkpoint."""

    def __init__(self, model: Any, stream: DocumentStream, settings: Settings) -> None:
        self.model, self.stream, self.settings, self.step, self.seconds = model, stream, settings, 0, 0.0
        self.losses = torch.compile(batch_losses) if settings.compiled else batch_losses
        self.optimizers = make_optimizers(model, settings.rate)

    def train_step(self) -> float:
        """One batch, one update of the parameters; the batch's loss before it."""
        started = time.monotonic()
        self.model.train()
        ids = self.stream.next_batch(self.settings.batch, self.settings.length)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bfloat16):
            loss, z_loss = self.losses(self.model, ids)
        (loss + self.settings.z_loss * z_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate * learning_rate(self.step, self.settings)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return float(loss.detach())

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stream": self.stream.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a kill while writing leaves the older checkpoint whole

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]


@torch.no_grad()
def held_out_loss(model: Any, rows: Tensor, bfloat16: bool) -> float:
    """Mean cross-entropy in nats per token over rows [N, T] of unseen modules."""
    was_training = model.training
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        losses = [model(part, labels=part).loss for part in rows.split(8)]
    model.train(was_training)
    return float(torch.stack(losses) @ torch.tensor([float(len(p)) for p in rows.split(8)])) / len(rows)


def show_samples(model: Any, tokenizer: Tokenizer, step: int) -> float:
    """Print completions of PROMPTS by the model as it is now; return their mean repetition."""
    options = demiurgic.GenerationConfig.balanced_code(96).to_dict()
    rates = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, add_bos=True)])
        completion = model.generate(ids, **options, seed=step)[0, ids.shape[1] :].tolist()
        print(f"--- step {step}\n{prompt}{tokenizer.decode(completion)}")
        rates.append(repetition(completion))
    return sum(rates) / len(rates)


def repetition(ids: list[int], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same row ("seq-rep-n", arXiv:1908.04319); 0 is none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def read_texts(path: Path) -> list[str]:
    with path.open() as file:
        return [json.loads(line)["text"] for line in file]


class Interrupt:
    """Ctrl-C and SIGTERM as a flag that is asked between steps, so that no step is left half done."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True


def run(
    trainer: Trainer,
    held_out: Tensor,
    out: Path,
    *,
    log_every: int,
    evaluate_every: int,
    sample_every: int,
    save_every: int,
    minutes: float,
) -> Iterator[dict[str, Any]]:
    """Train to the last step, the time limit or Ctrl-C; save; yield each row of the log as it is written."""
    settings, deadline, losses = trainer.settings, time.monotonic() + 60 * minutes, list[float]()
    due = lambda every: every and (trainer.step % every == 0 or trainer.step == settings.steps)  # noqa: E731
    with (out / "log.jsonl").open("a") as log, Interrupt() as interrupt:
        while trainer.step < settings.steps and not interrupt.asked and time.monotonic() < deadline:
            losses.append(trainer.train_step())
            row: dict[str, Any] = {}
            if due(log_every):
                row |= {"loss": sum(losses) / len(losses), "seconds": round(trainer.seconds, 1)}
                losses = []
            if due(evaluate_every):
                row["held_out_loss"] = held_out_loss(trainer.model, held_out, settings.bfloat16)
            if due(sample_every):
                row["repetition"] = show_samples(trainer.model, trainer.stream.tokenizer, trainer.step)
            if row:
                row = {"step": trainer.step, "rate": learning_rate(trainer.step - 1, settings), **row}
                log.write(json.dumps(row) + "\n")
                log.flush()
                yield row
            if due(save_every):
                trainer.save(out / "checkpoint.pt")
        trainer.save(out / "checkpoint.pt")


def export(model: Any, data: Path, folder: Path) -> None:
    """The model in bfloat16 with its tokenizer, as `demiurgic generate --model` takes it."""
    demiurgic.DemiurgicForCausalLM.save_pretrained(_in_bfloat16(model), folder)
    shutil.copy(data / "tokenizer.json", folder / "tokenizer.json")


def _in_bfloat16(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16)


def train(
    data: Annotated[Path, typer.Option(help="folder with train.jsonl, held_out.jsonl and tokenizer.json")],
    out: Annotated[Path, typer.Option(help="folder of the run: checkpoint, log, exported model")],
    steps: Annotated[int, typer.Option(min=1, help="the run's last step, those of earlier starts included")] = 4000,
    decay: Annotated[int, typer.Option(min=0, help="steps of the final fall of the learning rate")] = 1000,
    warmup: Annotated[int, typer.Option(min=0)] = 100,
    minutes: Annotated[float, typer.Option(help="save and stop after this time")] = math.inf,
    batch: Annotated[int, typer.Option(min=1, help="rows of a step")] = 32,
    length: Annotated[int, typer.Option(min=2, help="tokens of a row")] = 256,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 5e-3,
    z_loss: Annotated[float, typer.Option(help="weight of the z-loss")] = 2e-3,
    hidden_size: int = 320,
    intermediate_size: int = 704,
    layers: int = 5,
    heads: int = 5,
    context: int = 1024,
    seed: int = 0,
    bfloat16: Annotated[bool, typer.Option(help="matrix products in bfloat16, parameters in float32")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the training step's forward")] = False,
    log_every: int = 20,
    evaluate_every: int = 200,
    sample_every: int = 200,
    save_every: int = 200,
) -> None:
    """Train, or go on training, the model in OUT; export it to OUT/model at the end."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(seed)
    tokenizer = Tokenizer(data)
    config = demiurgic.DemiurgicConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        use_flash_attention_2=False,
    )
    settings = Settings(steps, decay, warmup, batch, length, rate, z_loss, seed, bfloat16, compiled)
    stream = DocumentStream(read_texts(data / "train.jsonl"), tokenizer, seed)
    trainer = Trainer(demiurgic.DemiurgicForCausalLM(config), stream, settings)
    if (out / "checkpoint.pt").exists():
        trainer.load(out / "checkpoint.pt")
    print(f"{trainer.model.num_parameters()} parameters, from step {trainer.step}, {json.dumps(asdict(settings))}")
    held_out = DocumentStream(read_texts(data / "held_out.jsonl"), tokenizer, seed, fim_share=0.0).next_batch(
        64, length
    )
    every = {
        "log_every": log_every,
        "evaluate_every": evaluate_every,
        "sample_every": sample_every,
        "save_every": save_every,
    }
    for row in run(trainer, held_out, out, minutes=minutes, **every):
        print(json.dumps(row), flush=True)
    export(trainer.model, data, out / "model")


if __name__ == "__main__":
    typer.run(train)
