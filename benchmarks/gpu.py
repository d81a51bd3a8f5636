"""Does it work on this GPU, and how fast is it: one command that builds nothing and ends after some minutes.

    python benchmarks/gpu.py                                              # what is to be known of a GPU
    python benchmarks/gpu.py --models XS,S,M,L --minutes 30 --save gpu.json
    python benchmarks/gpu.py --device cpu --models XS --rounds 1 --new 8  # does this program work?

It needs torch, transformers, pytest and numpy beside the package. First the tests marked cuda run, where a missing GPU
is a failure; then the card's bandwidth is measured; then, for each model, type and number of rows, the contenders
(gpu_contenders.py: generate() of transformers, eager and with a static cache and compilation, its continuous batching,
a compiled loop as gpt-fast has it) take turns with our engine on the same tensors: a prompt and one token, then the
prompt and `--new` tokens, greedily, EOS off. A step is (whole call - first token) / (new - 1); its share of the
bandwidth counts the bytes of the weights alone. At last `--requests` prompts of 10 to 500 tokens in one call.

Each of these parts runs in a process of its own, which tells what it has found so far: where a contender fails, the
reason stands in its place, and where the process itself ends, as after a fault on the device, the rest goes on without
it. What does not fit into `--minutes` is left out, and listed. The last line is one JSON object; `--save` has it after
every part.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo.utils
import typer
from gpu_contenders import CONTENDERS, OURS, UNEVEN, Contender, Prompts
from measure import chosen, counts, finish, summary, surroundings, timed, write
from sizes import DTYPES, FIRST_WORD, SIZES, random_prompts, random_weights

ROOT = Path(__file__).parents[1]
PROMPT_TOKENS = (10, 500)  # least and most of an uneven request

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """What one process measures: equal prompts, or uneven ones in one call."""

    model: str
    dtype: str
    batch: int
    prompt: int | None  # tokens of each prompt; None: uneven
    new: int
    rounds: int
    device: str
    compiles: bool
    contenders: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        rows = f"batch {self.batch}" if self.prompt else f"{self.batch} requests"
        return f"{self.model} {self.dtype} {rows}"

    @property
    def weight_bytes(self) -> int:
        return SIZES[self.model].decode_parameters * DTYPES[self.dtype].itemsize

    def prompts(self) -> Prompts:
        vocab = SIZES[self.model].vocab
        if self.prompt:
            return random_prompts(vocab, self.batch, self.prompt, seed=0)
        dice = random.Random(0)
        return [dice.choices(range(FIRST_WORD, vocab), k=dice.randint(*PROMPT_TOKENS)) for _ in range(self.batch)]


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = "S,L",
    dtypes: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "bfloat16",
    batches: Annotated[str, typer.Option(help="Numbers of rows.")] = "1,16",
    contenders: Annotated[str, typer.Option(help=f"Of {', '.join(CONTENDERS)}.")] = ",".join(CONTENDERS),
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="New tokens of each row.")] = 128,
    requests: Annotated[int, typer.Option(min=0, help="Uneven prompts in one call; 0: none.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    minutes: Annotated[float, typer.Option(min=0.1, help="What does not fit into them is left out.")] = 10,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu to try this program.")] = "cuda",
    tests: Annotated[bool, typer.Option(help="Run the tests marked cuda first.")] = True,
    compiles: Annotated[bool, typer.Option("--compile/--no-compile", help="Of the contenders that compile.")] = True,
    save: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    where = usable(device)
    names, kinds = chosen("--models", models, SIZES), chosen("--dtypes", dtypes, DTYPES)
    those, rows = chosen("--contenders", contenders, CONTENDERS), counts("--batches", batches)
    deadline = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {"benchmark": "gpu", "tests": None, "parts": [], "left_out": [], **surroundings(where)}
    if tests:
        report["tests"] = run_tests(ROOT / "tests", where, seconds=30 * minutes)
        write(report, save)
    report["bandwidth"] = device_bandwidth(where)
    print(f"{report['machine']['device']}: {report['bandwidth'] / 1e9:.0f} GB/s", flush=True)

    sizes = [(batch, prompt) for batch in rows] + ([(requests, None)] if requests else [])
    for model, dtype, (batch, length) in itertools.product(names, kinds, sizes):
        takes_part = [name for name in those if length or name in UNEVEN]
        part = Part(model, dtype, batch, length, new, rounds, str(where), compiles, takes_part)
        if time.monotonic() > deadline:
            report["left_out"].append(part.name)
            continue
        report["parts"].append({**asdict(part), **measured(part, deadline), "weight_bytes": part.weight_bytes})
        print_part(part.name, report["parts"][-1], report["bandwidth"])
        write(report, save)
    for name in report["left_out"]:
        print(f"{name}: left out, the time is up; --minutes gives more")
    finish(report, save)


def usable(name: str) -> torch.device:
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise typer.BadParameter(
            f"--device is {name!r}, which torch cannot use here: {error}".splitlines()[0]
        ) from None
    return device


# --- the tests -------------------------------------------------------------------------------------------------------


def run_tests(folder: Path, device: torch.device, seconds: float) -> dict[str, Any]:
    """What pytest says of the tests in `folder` that are marked cuda; on another device they are skipped."""
    marked = [file for file in sorted(folder.glob("test_*.py")) if "mark.cuda" in file.read_text(encoding="utf-8")]
    lacking = {file.name: missing for file in marked if (missing := missing_modules(file))}
    files = [str(file) for file in marked if file.name not in lacking]
    if not files:
        return {"exit_code": None, "summary": "no test that can run here", "failed": [], "left_out": lacking}
    required = {"DEMIURGIC_REQUIRE": "cuda"} if device.type == "cuda" else {}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=os.environ | required, capture_output=True, text=True, timeout=seconds
        )
        code, lines = ran.returncode, ran.stdout.splitlines() or ran.stderr.splitlines()
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        code, lines = None, [*text.splitlines(), f"stopped after {seconds:.0f} s"]
    if code != 0:
        print("\n".join(lines[-200:]))
    print(f"tests marked cuda: {lines[-1] if lines else 'pytest said nothing'}")
    for name, modules in lacking.items():
        print(f"  left out: {name}, which needs {', '.join(modules)}")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": code, "summary": lines[-1] if lines else "", "failed": failed, "left_out": lacking}


def missing_modules(file: Path) -> list[str]:
    """What the file imports at its top that is not installed here."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    beside = {path.stem for path in file.parent.glob("*.py")}
    return sorted(name for name in names - beside if importlib.util.find_spec(name) is None)


# --- the card --------------------------------------------------------------------------------------------------------


def device_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes a second that the device reads at best: by a sum, or by a copy, which reads and writes."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else 2**28
    data = torch.ones(min(2**32, free // 4) // 4, device=device)
    other, num_bytes = torch.empty_like(data), data.numel() * 4
    best, end = 0.0, time.monotonic() + seconds
    for work, moved in itertools.cycle([(data.sum, num_bytes), (lambda: other.copy_(data), 2 * num_bytes)]):
        best = max(best, moved / timed(finished_on(device, work)))
        if time.monotonic() > end:
            return best
    raise AssertionError  # a cycle has no end


def finished_on(device: torch.device, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work`, and waiting until the device has done it."""
    if device.type != "cuda":
        return work

    def both() -> Any:
        result = work()
        torch.cuda.synchronize(device)
        return result

    return both


# --- a part, in a process of its own ---------------------------------------------------------------------------------


def measured(part: Part, deadline: float) -> dict[str, Any]:
    """What the part's process told last; without the contender in whose turn it ended, in another process."""
    told: dict[str, Any] = {"contenders": {}, "absent": {}}
    ended: dict[str, str] = {}
    while part.contenders and time.monotonic() < deadline:
        told = told_by_process(part, deadline - time.monotonic())
        if (culprit := told.pop("in_turn")) is None:
            break
        ended[culprit] = told["absent"].pop(culprit, told["ended"])
        part = replace(part, contenders=[name for name in part.contenders if name != culprit])
    return {**told, "absent": {**ended, **told["absent"]}}


def told_by_process(part: Part, seconds: float) -> dict[str, Any]:
    """`in_turn` is None where it came to its end; else `ended` says how it ended in that contender's turn."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(part, sending, seconds), daemon=True)
    process.start()
    sending.close()
    told: dict[str, Any] = {"contenders": {}, "absent": {}, "in_turn": part.contenders[0]}
    end = time.monotonic() + seconds + 30  # it looks at the clock itself, but for what hangs
    try:
        while receiving.poll(max(0.0, end - time.monotonic())):
            told = receiving.recv()
        ended = f"stopped after {seconds:.0f} s"
    except EOFError:
        process.join(10)
        ended = f"its process ended with {process.exitcode}"
    process.kill()
    process.join()
    return told if told["in_turn"] is None else {**told, "ended": ended}


def run_part(part: Part, sending: Any, seconds: float) -> None:
    """Of the part's process. What it prints is no result."""
    os.dup2(2, 1)
    measure_part(part, sending.send, time.monotonic() + seconds)
    sending.close()
    os._exit(0)  # some libraries keep threads


def measure_part(part: Part, tell: Tell, deadline: float) -> dict[str, Any]:
    """Loads, warms up and times the contenders; before each turn tells what there is and whose turn it is."""
    runners, name = Field(part, deadline), ""
    try:
        for name in runners.turns():
            tell({**runners.result(), "in_turn": name})
    except torch.AcceleratorError as error:  # nothing runs on the device any more in this process
        runners.leave(name, reason_of(error))
        tell({**runners.result(), "in_turn": name})
        raise
    result = {**runners.result(), "in_turn": None}
    tell(result)
    return result


class Field:
    """The contenders of a part. One that fails is left out from then on, with the reason."""

    def __init__(self, part: Part, deadline: float) -> None:
        self.part, self.deadline, self.device = part, deadline, torch.device(part.device)
        self.prompts = part.prompts()
        self.contenders: dict[str, Contender] = {}
        self.absent: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, Prompts] = {}
        self.seconds: dict[str, list[tuple[float, float]]] = {}  # (first token, whole call) by turn

    def turns(self) -> Iterator[str]:
        """Does the work; before each turn the name of the contender whose it is."""
        weights = random_weights(SIZES[self.part.model], DTYPES[self.part.dtype], self.device)
        for name in self.part.contenders:
            yield name
            self.guarded(name, lambda name=name: self.enter(name, weights))  # type: ignore[misc]
        for _ in range(self.part.rounds):
            for name in list(self.contenders):
                yield name
                self.guarded(name, lambda name=name: self.seconds[name].append(self.turn(name)))  # type: ignore[misc]

    def guarded(self, name: str, work: Callable[[], Any]) -> None:
        if time.monotonic() > self.deadline:
            if not self.seconds.get(name):
                self.leave(name, "the time was up")
            return
        try:
            work()
        except torch.AcceleratorError:
            raise
        except Exception as error:  # whatever a library throws is its contender's alone
            self.leave(name, reason_of(error))

    def leave(self, name: str, reason: str) -> None:
        self.contenders.pop(name, None)
        self.absent.setdefault(name, reason)

    def enter(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        """Loads the contender and runs its calls once: compiled, captured, and looked at."""
        part, start = self.part, time.perf_counter()
        context = max(map(len, self.prompts)) + part.new
        before, skipped = self.peak(reset=True), graphs_skipped()
        contender = CONTENDERS[name](
            weights, model=part.model, batch=part.batch, context=context, compiles=part.compiles
        )
        self.tokens[name] = contender.generate(self.prompts, part.new)
        if part.prompt:
            contender.generate(self.prompts, 1)
        self.contenders[name], self.seconds[name] = contender, []
        self.about[name] = {
            "warm_up": time.perf_counter() - start,
            "peak_bytes": self.peak() - before,
            "graphs_skipped": graphs_skipped() - skipped,  # by torch.compile, which then replays none
        }

    def peak(self, reset: bool = False) -> int:
        """The most memory in use since the last reset; 0 where it is not a GPU's."""
        if self.device.type != "cuda":
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def turn(self, name: str) -> tuple[float, float]:
        """Seconds of the first token, 0 where it is not asked for, and of the whole call."""
        contender, new = self.contenders[name], self.part.new
        first = (
            timed(finished_on(self.device, lambda: contender.generate(self.prompts, 1))) if self.part.prompt else 0.0
        )
        return first, timed(finished_on(self.device, lambda: contender.generate(self.prompts, new)))

    def result(self) -> dict[str, Any]:
        rows = {name: self.row(name) for name, seconds in self.seconds.items() if seconds}
        return {"contenders": rows, "absent": dict(self.absent)}

    def row(self, name: str) -> dict[str, Any]:
        part, seconds = self.part, self.seconds[name]
        whole = summary([whole for _, whole in seconds])
        row = {**self.about[name], "whole": whole, "tokens_per_second": part.batch * part.new / whole["median"]}
        row["same_tokens"] = self.same_tokens(name)
        if part.prompt:
            row["first"] = summary([first for first, _ in seconds])
            row["step"] = summary([(whole - first) / (part.new - 1) for first, whole in seconds])
        return row

    def same_tokens(self, name: str) -> int | None:
        """Tokens of the median row that are ours, up to the first that is not; None without ours."""
        if OURS not in self.tokens:
            return None
        pairs = zip(self.tokens[name], self.tokens[OURS], strict=True)
        common = [sum(itertools.takewhile(bool, map(int.__eq__, row, ours))) for row, ours in pairs]
        return sorted(common)[len(common) // 2]


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def graphs_skipped() -> int:
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


# --- tables ----------------------------------------------------------------------------------------------------------


def print_part(name: str, result: dict[str, Any], bandwidth: float) -> None:
    print(f"\n{name}, {result['new']} new tokens" + (f", prompts of {result['prompt']}" if result["prompt"] else ""))
    ours = result["contenders"].get(OURS)
    for contender, row in result["contenders"].items():
        print(f"  {contender:12}{columns(row, result, bandwidth)}{against(row, ours)}")
    for contender, reason in result["absent"].items():
        print(f"  {contender:12}absent: {reason}")
    if any(row["graphs_skipped"] for row in result["contenders"].values()):
        print("  torch.compile skipped CUDA graphs: what is compiled is slower than it could be")
    sys.stdout.flush()


def columns(row: dict[str, Any], result: dict[str, Any], bandwidth: float) -> str:
    rate = f"{row['tokens_per_second']:>10.0f} tokens/s"
    if not result["prompt"]:
        return f"{rate}{row['whole']['median']:>10.2f} s"
    step = row["step"]["median"]
    share = result["weight_bytes"] / step / bandwidth if step > 0 else float("nan")
    first = row["first"]["median"] * 1e3
    return f"{rate}{step * 1e3:>10.3f} ms a step{share:>6.0%} of the bandwidth, first token{first:>9.2f} ms"


def against(row: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """How many times as long it takes as our engine, and how far its tokens are ours."""
    if ours is None or row is ours:
        return ""
    of = "step" if "step" in row else "whole"
    return f"   {row[of]['median'] / ours[of]['median']:.2f} times ours; {row['same_tokens']} tokens the same"


if __name__ == "__main__":
    typer.run(main)
