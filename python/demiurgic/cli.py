"""The command line: `demiurgic generate`, `demiurgic options`, `demiurgic info`.

Exit codes: 0 done, 1 the generation failed, 2 the caller's mistake, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from demiurgic import _C, __version__
from demiurgic import info as installation
from demiurgic.auto_length import auto_lengths, take_auto_length
from demiurgic.cli_options import DEFAULTS, OPTIONS, flag_name, preset_named, read_options, with_options
from demiurgic.engine import Generation
from demiurgic.loading import SHIPPED_MODELS, load, model_folder
from demiurgic.model import DemiurgicForCausalLM
from demiurgic.output import GenerationError, GenerationOutput
from demiurgic.printable import printable
from demiurgic.streaming import Stream, known_or_none
from demiurgic.token_bytes import token_bytes
from demiurgic.tokenizer import Tokenizer

app = typer.Typer(
    name="demiurgic",
    help="Generates text from a PyTorch language model's weights.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes leave too little room for the text
    context_settings={
        "max_content_width": 110,
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --max_tokens is --max-tokens
    },
)


# The base of all complaints about a command line. Typer does not export it, only one of its heirs.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(arguments or ["--help"], prog_name="demiurgic", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except _UsageError as error:
        _say(_usage_message(error))
        return 2
    return code or 0


def _usage_message(error: Any) -> str:
    """The sentence for a command line that cannot be read."""
    name = getattr(error, "option_name", "")
    if name and hasattr(error, "possibilities"):
        near = (error.possibilities or [""])[0]
        return f"There is no option {name}" + (f"; did you mean {near}?" if near else ".") + " See --help."
    return str(error.format_message())


def _say(message: str) -> None:
    print(f"demiurgic: {message}", file=sys.stderr, flush=True)


def _first_line(error: Exception | Warning) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _one_line_errors(mistakes: tuple[type[Exception], ...], debug: bool) -> Iterator[None]:
    """Ends the command with one line for an exception: with 2 for the caller's `mistakes`, else with 1."""
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
        raise typer.Exit(141) from None  # as if ended by SIGPIPE, which Python ignores
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(_first_line(error))
        raise typer.Exit(2 if isinstance(error, mistakes) else 1) from None


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {_first_line(Warning(message))}")
        yield


# ---- generate -------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A prompt and what is to be made of it."""

    model: DemiurgicForCausalLM
    folder: Path
    tokenizer: Tokenizer
    prompt: str
    suffix: str | None
    ids: list[int]  # of prompt, suffix and the marks between them
    config: _C.GenerationConfig
    preset: str | None


@app.command()
@with_options
def generate(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="The beginning of the text; - reads standard input.", show_default=False),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="The shipped model, or a checkpoint folder with its tokenizer.json."),
    ] = "tiny",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Set of defaults: {', '.join(_C.presets())}. Default: completion_fim with --suffix, else "
            "balanced_code for the shipped model and none for another.",
        ),
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Fill in between the prompt and this text.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps …")] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="float32, bfloat16, float16, or auto: as the checkpoint stores it.")
    ] = "auto",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--no-exact",
            help="Whether a text has the same bits whatever is computed with it. Without, products of long prompts and "
            "many rows may be cuBLASLt's on CUDA.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DEMIURGIC_DEBUG", help="Show the traceback of an error.")
    ] = False,
    **given: Any,
) -> None:
    """Continues PROMPT and prints the whole text as it comes.

    A file or a pipe gets exactly the text: demiurgic generate "def f():" > f.py
    """
    _prepare_output()
    with _one_line_warnings():
        with _one_line_errors((Exception,), debug):
            job = _prepare(prompt, suffix, model, preset, device, dtype, read_options(given))
        with _one_line_errors((TypeError, ValueError, IndexError), debug):
            _run(job, as_json, exact)


def _prepare(
    prompt: str,
    suffix: str | None,
    model_name: str,
    preset: str | None,
    device: str,
    dtype: str,
    options: dict[str, Any],
) -> _Job:
    """Everything before the engine; whatever fails here is the caller's to mend."""
    shipped = model_name in SHIPPED_MODELS
    if preset is None:
        preset = "completion_fim" if suffix is not None else "balanced_code" if shipped else None
    by_prompt = take_auto_length(options)
    config = (_C.GenerationConfig() if preset is None else preset_named(preset)).replace(**DEFAULTS | options)
    text = _read_input() if prompt == "-" else prompt
    model, tokenizer = load(model_name, device=device, dtype=dtype)
    if suffix is None:
        ids = tokenizer.encode(text, add_bos=tokenizer.bos_token_id is not None)
    else:
        ids = tokenizer.fim(text, suffix)
    if by_prompt:
        [length] = auto_lengths([ids], token_bytes(tokenizer), config, model.config)
        config = config.replace(max_new_tokens=length)
    elif not options.keys() & {"max_new_tokens", "max_length"}:
        config = _within_context(config, model.config.max_position_embeddings - len(ids))
    return _Job(model, model_folder(model_name), tokenizer, text, suffix, ids, config, preset)


def _read_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")  # not sys.stdin.read, which changes line ends
    except UnicodeDecodeError as error:
        raise ValueError(f"Standard input is not UTF-8 text: byte {error.start} is wrong.") from None


def _within_context(config: _C.GenerationConfig, room: int) -> _C.GenerationConfig:
    """A default length ends where the context does; past a prompt that fills it, the engine's warning speaks."""
    if room <= 0 or room >= (config.max_new_tokens or 0):
        return config
    return config.replace(max_new_tokens=max(room, config.min_new_tokens or 0))


def _run(job: _Job, as_json: bool, exact: bool) -> None:
    """Generates and prints; Ctrl-C ends the generation, and what there is by then is printed all the same."""
    if not as_json:
        _refuse_what_a_text_cannot_show(job.config)
    rows = job.config.num_return_sequences
    streaming = rows == 1 and not as_json
    interrupted = False
    # Text is cut where it has to be; what only passes through may have any tokenizer.
    tokenizer = job.tokenizer if job.config.stop or job.config.stop_at else known_or_none(job.tokenizer)
    with Generation(
        job.model, [job.ids], config=job.config, exact=exact, tokenizer=tokenizer, interruptible=streaming
    ) as generation:
        try:
            if streaming:
                _stream(generation, job)
            else:
                _show_progress(generation, job)
        except KeyboardInterrupt:
            interrupted = True
    result = generation.result()
    if as_json:
        print(json.dumps(_report(job, result), ensure_ascii=False), flush=True)
    elif rows > 1:
        _print_rows(job, result)
    for row, error in enumerate(result.errors):
        if error is not None:
            _say(error if rows == 1 else f"sequence {row + 1}: {error}")
    if interrupted:
        raise typer.Exit(130)
    if any(result.errors):
        raise typer.Exit(1)
    if streaming and sys.stderr.isatty():
        print(_dim(_summary(result, 0, speed=True), sys.stderr), file=sys.stderr)


def _refuse_what_a_text_cannot_show(config: _C.GenerationConfig) -> None:
    for name in ("top_logprobs", "prompt_logprobs", "entropy"):
        if getattr(config, name):
            raise ValueError(f"{flag_name(name)} asks for numbers, which are printed with --json only; add --json.")


def _stream(generation: Generation, job: _Job) -> None:
    """Prints prompt, completion as it comes and suffix; on a terminal the given text is dim."""
    last = _write(job.prompt, given=True)
    try:
        with suppress(GenerationError):  # _run tells the errors of rows
            for event in Stream(generation, job.tokenizer):
                last = _write(event.text or "") or last
        last = _write(job.suffix or "", given=True) or last
    finally:
        if sys.stdout.isatty() and not last.endswith("\n"):
            _write("\n")


def _show_progress(generation: Generation, job: _Job) -> None:
    """Advances to the end, with a bar of tokens on standard error if that is a terminal."""
    rows = range(generation.num_rows)
    most = job.config.max_new_tokens or 0
    if job.config.max_length is not None:
        most = max(job.config.max_length - len(job.ids), 0)
    lengths = [0] * len(rows)
    columns = "{task.description}", BarColumn(), "{task.fields[tokens]} tokens", "{task.fields[speed]:.0f} tokens/s"
    bar = Progress(
        *(TextColumn(c, style="dim") if isinstance(c, str) else c for c in columns),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    start = time.perf_counter()
    with bar:
        noun = "sequence" if len(rows) == 1 else "sequences"
        task = bar.add_task(f"{len(rows)} {noun}", total=len(rows) * most, tokens=0, speed=0.0)
        while generation.advance():
            lengths = [lengths[row] + len(generation.tokens(row, lengths[row])) for row in rows]
            ended = [generation.finish_reason(row) != "none" for row in rows]
            bar.update(
                task,
                completed=sum(most if ended[row] else lengths[row] for row in rows),
                tokens=sum(lengths),
                speed=sum(lengths) / (time.perf_counter() - start),
            )


# ---- what is printed ------------------------------------------------------------------------------------------------


def _prepare_output() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")


def _write(text: str, given: bool = False) -> str:
    """Puts text on standard output at once: as it is, or made safe for a terminal, dim if it is the user's own."""
    if sys.stdout.isatty():
        shown = printable(text)
        sys.stdout.write(_dim(shown, sys.stdout) if given and text else shown)
    else:
        sys.stdout.write(text)
    sys.stdout.flush()
    return text


def _dim(text: str, stream: Any) -> str:
    return typer.style(text, dim=True) if stream.isatty() and os.environ.get("TERM") != "dumb" else text


def _print_rows(job: _Job, result: GenerationOutput) -> None:
    """The texts one below the other, each under a line that is a comment in most languages."""
    for row, text in enumerate(_texts(job, result)):
        header = f"# {row + 1} of {len(result.lengths)} · {_summary(result, row)}"
        _write(_dim(header, sys.stdout) if sys.stdout.isatty() else header)
        _write("\n" + text + ("" if text.endswith("\n") else "\n"))


def _summary(result: GenerationOutput, row: int, speed: bool = False) -> str:
    facts = [f"{result.lengths[row]} tokens"]
    if speed:
        facts.append(f"{result.timings['tokens_per_second']:.0f} tokens/s")
    return " · ".join([*facts, f"ended by {result.finish_reasons[row]}", f"seed {result.seeds[row]}"])


def _texts(job: _Job, result: GenerationOutput) -> list[str]:
    """Prompt, completion and suffix of each row."""
    return [job.prompt + completion + (job.suffix or "") for completion in _completions(job, result)]


def _completions(job: _Job, result: GenerationOutput) -> list[str]:
    return result.texts or [job.tokenizer.decode(ids) for ids in result.completions]


def _report(job: _Job, result: GenerationOutput) -> dict[str, Any]:
    """The object of --json. Lists have one entry a sequence."""
    parameter = next(job.model.parameters())
    return {
        "model": str(job.folder),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "preset": job.preset and job.preset.replace("-", "_"),
        "options": {name: getattr(job.config, name) for name in OPTIONS},
        "prompt": job.prompt,
        "suffix": job.suffix,
        "completions": _completions(job, result),
        "texts": _texts(job, result),
        "finish_reasons": result.finish_reasons,
        "stop_reasons": result.stop_reasons,
        "errors": result.errors,
        "prompt_tokens": result.prompt_lengths[0],
        "completion_tokens": result.lengths,
        "seeds": result.seeds,
        "timings": result.timings,
        **_numbers(result),
    }


def _numbers(result: GenerationOutput) -> dict[str, Any]:
    """What top_logprobs, entropy and prompt_logprobs tell, each row as long as it is; null for nan."""
    fields: dict[str, Any] = {}
    for prefix in ("", "processed_"):
        for name in ("top_logprobs", "top_logprob_ids", "entropies"):
            values = getattr(result, prefix + name)
            if values is not None:
                rows = zip(values.tolist(), result.lengths, strict=True)
                fields[prefix + name] = [_without_nan(row[:length]) for row, length in rows]
    if result.prompt_logprobs is not None:
        fields["prompt_logprobs"] = _without_nan(result.prompt_logprobs.tolist())
    return fields


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if values != values else values


# ---- the other commands ---------------------------------------------------------------------------------------------


@app.command()
def options(
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Show the defaults of this preset.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Lists every option of generation and its default."""
    with _one_line_errors((ValueError,), debug=False):
        config = _C.GenerationConfig() if preset is None else preset_named(preset)
    rows = [option | {"default": getattr(config, name)} for name, option in OPTIONS.items()]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("option", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning")
    for row in rows:
        table.add_row(row["name"], str(row["default"]), Text(f"{row['doc']} [{row['range']}]"))
    Console().print(table)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Tells versions, build, devices and kernels."""
    raise typer.Exit(installation.main(["--json"] if as_json else []))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"demiurgic {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


if __name__ == "__main__":
    sys.exit(main())
