"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import subprocess
import sys
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from models import tiny_model
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from demiurgic import _C, DemiurgicForCausalLM, GenerationConfig, cli, generate
from demiurgic.cli_options import DEFAULTS, OPTIONS
from demiurgic.text import suggest_max_new_tokens
from demiurgic.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<bos>", "<eos>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
CONTEXT = 64


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights whose tokens are the special ones and the bytes."""
    path = tmp_path_factory.mktemp("model")
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.save(str(path / "tokenizer.json"))
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tiny_model(vocab_size=len(tokens), max_position_embeddings=CONTEXT, **special).save_pretrained(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command line in this process."""

    def call(*arguments: object, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command line in this process with both outputs on one terminal; `err` stays empty."""

    def call(*arguments: object) -> Ended:
        master, slave = pty.openpty()
        tty.setraw(slave)  # or every "\n" would come out as "\r\n"
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with os.fdopen(slave, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            code = cli.main([str(argument) for argument in arguments])
            screen.flush()
            os.set_blocking(master, False)
            shown = read_all(master)
        os.close(master)
        return Ended(code, shown.decode(), "")

    return call


def read_all(file: int) -> bytes:
    data = b""
    try:
        while chunk := os.read(file, 65536):
            data += chunk
    except OSError as error:  # nothing more for now, or the other side is closed
        assert error.errno in (errno.EAGAIN, errno.EIO)
    return data


def report(ended: Ended) -> dict[str, Any]:
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("\n") == 1
    loaded: dict[str, Any] = json.loads(ended.out)
    return loaded


def completions(folder: Path, ids: list[int], config: GenerationConfig) -> list[str]:
    """What the library gives, without the command line."""
    model, tokenizer = DemiurgicForCausalLM.from_pretrained(folder), Tokenizer(folder)
    return tokenizer.decode(generate(model, [ids], generation_config=config)[:, len(ids) :])


# ---- the text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["def f():", "", "größer 😀 你", "a\r\n\tb\n", "--- <eos> [bold]"])
def test_a_pipe_gets_exactly_the_text(run: Run, folder: Path, prompt: str) -> None:
    ended = run("generate", "--model", folder, "--max-new-tokens", 30, "--seed", 5, "--", prompt)
    ids = Tokenizer(folder).encode(prompt, add_bos=True)
    expected = completions(folder, ids, GenerationConfig(max_new_tokens=30, seed=5))[0]
    assert ended == (0, prompt + expected, "")
    assert expected


@pytest.mark.parametrize("data", [b"def f(a,\r\n", "größer 😀\n".encode(), b""])
def test_the_prompt_comes_from_standard_input(run: Run, folder: Path, data: bytes) -> None:
    assert run("generate", "-", "--model", folder, "--max-new-tokens", 0, stdin=data) == (0, data.decode(), "")


def test_a_suffix_is_filled_in_before(run: Run, folder: Path) -> None:
    ended = run("generate", "a(", "--suffix", ")\n", "--model", folder, "--seed", 1, "--max-tokens", 9)
    config = GenerationConfig.completion_fim(9, seed=1)
    [middle] = completions(folder, Tokenizer(folder).fim("a(", ")\n"), config)
    assert ended == (0, f"a({middle})\n", "")


def test_json(run: Run, folder: Path) -> None:
    flags = ["--max-new-tokens", 6, "--seed", 3, "--num-return-sequences", 2, "--eos-token-id", "[]"]
    got = report(run("generate", "é(", "--model", folder, "--preset", "precise-code", "--json", *flags))
    config = GenerationConfig.precise_code(6, seed=3, num_return_sequences=2, eos_token_id=[], **DEFAULTS)
    expected = completions(folder, Tokenizer(folder).encode("é(", add_bos=True), config)
    timings = got.pop("timings")
    assert timings.keys() == {"prefill", "decode", "tokens_per_second"}
    assert timings["tokens_per_second"] > 0
    assert got == {
        "model": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "preset": "precise_code",
        "options": {name: getattr(config, name) for name in OPTIONS},
        "prompt": "é(",
        "suffix": None,
        "completions": expected,
        "texts": ["é(" + each for each in expected],
        "finish_reasons": ["length", "length"],
        "stop_reasons": [None, None],
        "errors": [None, None],
        "prompt_tokens": 4,
        "completion_tokens": [6, 6],
        "seeds": [3, _C.derive_seed(3, 1)],
    }


def test_json_has_the_numbers_that_are_asked_for(run: Run, folder: Path) -> None:
    flags = ["--top-logprobs", 3, "--top-logprobs-mode", "both", "--entropy", "--prompt-logprobs"]
    common = ["--max-new-tokens", 5, "--seed", 3, "--num-return-sequences", 2, "--top-k", 2, "--model", folder]
    got = report(run("generate", "é(", "--json", *common, *flags))
    told = {"top_logprobs": 3, "top_logprobs_mode": "both", "entropy": True, "prompt_logprobs": True}
    config = GenerationConfig(max_new_tokens=5, seed=3, num_return_sequences=2, top_k=2, **told)
    ids = Tokenizer(folder).encode("é(", add_bos=True)
    model, _ = cli.load(str(folder))
    expected = generate(model, [ids], generation_config=config, return_dict_in_generate=True)
    assert got["top_logprob_ids"] == [
        row[:length] for row, length in zip(expected.top_logprob_ids.tolist(), expected.lengths, strict=True)
    ]
    assert [len(row) for row in got["entropies"]] == expected.lengths
    assert all(row[-1][2] is None for row in got["processed_top_logprobs"])  # top_k left two
    assert got["prompt_logprobs"][0][0] is None
    assert got["prompt_logprobs"][1][1:] == pytest.approx(expected.prompt_logprobs[1, 1:].tolist())
    assert "entropies" not in report(run("generate", "é(", "--json", *common))


@pytest.mark.parametrize("flag", [["--top-logprobs", 2], ["--prompt-logprobs"], ["--entropy"]])
def test_numbers_that_a_text_cannot_show_are_refused(run: Run, folder: Path, flag: list[Any]) -> None:
    ended = run("generate", "x", "--model", folder, *flag)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"demiurgic: {flag[0]} asks for numbers, which are printed with --json only; add --json.\n"


def test_several_sequences_stand_under_headers(run: Run, folder: Path) -> None:
    flags = ["--max-new-tokens", 4, "--seed", 9, "--num-return-sequences", 3, "--eos-token-id", "[]"]
    ended = run("generate", "x", "--model", folder, *flags)
    got = report(run("generate", "x", "--model", folder, *flags, "--json"))
    headers = [f"# {i + 1} of 3 · 4 tokens · ended by length · seed {got['seeds'][i]}\n" for i in range(3)]
    texts = [text if text.endswith("\n") else text + "\n" for text in got["texts"]]
    assert ended == (0, "".join(header + text for header, text in zip(headers, texts, strict=True)), "")


def test_the_shipped_model_is_the_default(run: Run) -> None:
    got = report(run("generate", "def f():", "--max-new-tokens", 2, "--seed", 1, "--json"))
    assert (Path(got["model"]), got["preset"]) == (cli.SHIPPED_MODELS["tiny"], "balanced_code")
    assert got["options"]["repetition_penalty"] == 1.1


# ---- options --------------------------------------------------------------------------------------------------------

GIVEN: dict[str, tuple[list[str], Any]] = {
    "max_new_tokens": (["3"], 3),
    "max_length": (["9"], 9),
    "min_length": (["2"], 2),
    "temperature": (["0.5"], 0.5),
    "top_k": (["none"], 0),
    "top_p": (["0.9"], 0.9),
    "typical_p": (["0.7"], 0.7),
    "do_sample": ([], True),
    "repetition_penalty": (["1.5"], 1.5),
    "frequency_penalty": (["-0.5"], -0.5),
    "presence_penalty": (["1"], 1.0),
    "num_return_sequences": (["2"], 2),
    "pad_token_id": (["7"], 7),
    "eos_token_id": (["4"], 4),
    "min_new_tokens": (["1"], 1),
    "min_p": (["0.1"], 0.1),
    "repetition_context_size": (["8"], 8),
    "penalize_prompt": ([], True),
    "no_repeat_ngram_size": (["3"], 3),
    "logit_bias": (["5=-1.5,7=2"], {"5": -1.5, "7": 2.0}),
    "bad_token_ids": (["10,11"], [10, 11]),
    "stop_token_ids": (["12"], [12]),
    "seed": (["18446744073709551615"], 2**64 - 1),
    "use_cache": ([], True),
    "speculate": (["ngram"], "ngram"),
    "max_draft_tokens": (["5"], 5),
    "stop": (["a,b\\n"], ["a,b\n"]),
    "include_stop": ([], True),
    "stop_at": (["function"], "function"),
    "stop_on_repetition": (["3"], 3),
    "repetition_min_tokens": (["20"], 20),
    "trim_repetition": ([], True),
    "top_logprobs": (["3"], 3),
    "top_logprobs_mode": (["both"], "both"),
    "prompt_logprobs": ([], True),
    "entropy": ([], True),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.native) if name == "speculate" else name for name in OPTIONS]
)
@pytest.mark.parametrize("spelled", ["dashes", "underscores"])
def test_every_option_reaches_the_engine(run: Run, folder: Path, name: str, spelled: str) -> None:
    texts, value = GIVEN[name]
    flag = "--" + (name.replace("_", "-") if spelled == "dashes" else name)
    limit = [] if name == "max_new_tokens" else ["--max-new-tokens", "2"]
    got = report(run("generate", "x", "--model", folder, "--json", *limit, flag, *texts))
    assert got["options"][name] == value
    assert len(got["texts"]) == got["options"]["num_return_sequences"]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--no-do-sample", "do_sample", False),
        ("--no_penalize_prompt", "penalize_prompt", False),
        ("--no-use-cache", "use_cache", False),
        ("--max-tokens=4", "max_new_tokens", 4),
        ("--max_tokens 4", "max_new_tokens", 4),
        ("--top-k 3 --top-k 5", "top_k", 5),
        ("--temperature None", "temperature", 1.0),
        ("--eos-token-id 4,5", "eos_token_id", [4, 5]),
        ("--eos-token-id [4,5]", "eos_token_id", [4, 5]),
        ("--eos-token-id []", "eos_token_id", []),
        ("--eos-token-id none", "eos_token_id", None),
        ("--stop-token-ids 4 --stop-token-ids 5,6", "stop_token_ids", [4, 5, 6]),
        ("--logit-bias 4=1 --logit-bias 5=2", "logit_bias", {"4": 1.0, "5": 2.0}),
        ("--seed 4,5 --num-return-sequences 2", "seed", [4, 5]),
        (r"--stop \n\n --stop \\n\t --stop none", "stop", ["\n\n", "\\n\t", "none"]),
        ("--stop-on-repetition none", "stop_on_repetition", None),
        ("--stop-at none", "stop_at", None),
    ],
)
def test_spellings_of_values(run: Run, folder: Path, flags: str, name: str, value: Any) -> None:
    limit = [] if name == "max_new_tokens" else ["--max-new-tokens", "2"]
    got = report(run("generate", "x", "--model", folder, "--json", *limit, *flags.split()))
    assert got["options"][name] == value


@pytest.mark.parametrize("preset", _C.presets())
def test_every_preset(run: Run, folder: Path, preset: str) -> None:
    got = report(run("generate", "x", "--model", folder, "--json", "--preset", preset, "--max-tokens", 1))
    config = getattr(GenerationConfig, preset)(1, **DEFAULTS)
    assert got["options"] == {name: getattr(config, name) for name in OPTIONS}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], CONTEXT - 3),  # bos and two bytes
        (["--min-new-tokens", 62], 62),
        (["--max-length", 10], 512),
        (["--max-new-tokens", 70], 70),
        (["--max-new-tokens", "auto"], CONTEXT - 3),
    ],
)
def test_only_a_default_length_ends_with_the_context(run: Run, folder: Path, flags: list[Any], expected: int) -> None:
    call = ["generate", "xy", "--model", folder, "--json", "--preset", "balanced_code", "--seed", 0, *flags]
    ended = run(*call)
    assert json.loads(ended.out)["options"]["max_new_tokens"] == expected
    longer = expected + 3 > CONTEXT and "--max-length" not in flags
    assert ended.err.startswith("demiurgic: warning: Rows may grow to ") == longer
    assert ended.err.count("\n") == longer


def test_auto_is_a_length_by_the_prompt(run: Run) -> None:
    prompt = "class Stack:\n"
    got = report(run("generate", prompt, "--json", "--max-tokens", "auto", "--stop", "\\n"))
    assert got["options"]["max_new_tokens"] == suggest_max_new_tokens(prompt) == 256


@pytest.mark.parametrize("rows", [1, 2])
def test_the_text_ends_before_the_stop_string(run: Run, folder: Path, rows: int) -> None:
    flags = ["--model", folder, "--max-new-tokens", 40, "--seed", 5, "--num-return-sequences", rows]
    whole = report(run("generate", "x", *flags, "--json"))
    stop = next(c for c in whole["completions"][0][3:] if c != "\ufffd")
    expected = [text.split(stop)[0] for text in whole["completions"]]
    got = report(run("generate", "x", *flags, "--json", "--stop", stop))
    assert (got["completions"], got["texts"]) == (expected, ["x" + text for text in expected])
    assert (got["finish_reasons"][0], got["stop_reasons"][0]) == ("stop", stop)
    shown = run("generate", "x", *flags, "--stop", stop)
    assert shown.out == "x" + expected[0] if rows == 1 else all("x" + text in shown.out for text in expected)


def test_a_loop_is_ended_unless_it_is_switched_off(run: Run) -> None:
    loop = ["generate", "x", "--json", "--max-tokens", 90, "--logit-bias", "400=1e9", "--preset", "greedy"]
    got = report(run(*loop))
    assert (got["finish_reasons"], got["completion_tokens"]) == (["repetition"], [64])
    got = report(run(*loop, "--stop-on-repetition", "none"))
    assert (got["finish_reasons"], got["completion_tokens"]) == (["length"], [90])


# ---- mistakes and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temprature", "1"], "no option --temprature; did you mean --temperature?"),
        (["--max-new-tokens", "auto", "--max-length", "9"], "max_new_tokens='auto' is given beside max_length=9"),
        (["--zzz"], "no option --zzz. See --help"),
        (["--top-k"], "requires an argument"),
        (["second"], "unexpected extra argument"),
        (["--top-k", "many"], "--top-k is 'many', but must be an integer"),
        (["--top-k", "1.5"], "--top-k is '1.5'"),
        (["--top-k", "-1"], "top_k is -1, but must be"),
        (["--top-k", str(2**64)], "does not fit"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--num-return-sequences", "none"], "--num-return-sequences is 'none'"),
        (["--logit-bias", "5"], "--logit-bias is '5', but must be token ids and finite numbers, written as"),
        (["--logit-bias", "5=x"], "written as ID=NUMBER"),
        (["--stop-token-ids", "1,,2"], "--stop-token-ids is '1,,2'"),
        (["--stop-token-ids", "100000"], "100000"),
        (["--seed", "-1"], "seed is -1, but must be"),
        (["--seed", "1,2"], "seed is a list of 2"),
        (["--max-new-tokens", "none"], "max_new_tokens and max_length are both None"),
        (["--preset", "balanced"], "no preset 'balanced'; did you mean 'balanced_code'? Presets: greedy, "),
        (["--preset", ""], "no preset ''"),
        (["--model", "/nowhere/at/all"], "There is no model and no folder '/nowhere/at/all'"),
        (["--dtype", "int8"], "dtype must be float32"),
        (["--dtype", "floaty"], "dtype must be float32"),
        (["--no-exact", "--speculate", "ngram"], "exact=False gives them up"),
        (["--device", "gpu"], "device is 'gpu', which torch cannot use here"),
        (["--device", "meta"], "meta"),
    ],
)
def test_mistakes_are_one_line(run: Run, folder: Path, arguments: list[str], message: str) -> None:
    model = [] if "--model" in arguments else ["--model", folder]
    ended = run("generate", "x", *model, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("demiurgic: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "Missing argument 'PROMPT'"),
        (["genrate", "x"], "No such command 'genrate'"),
        (["options", "--preset", "x"], "no preset 'x'"),
        (["--versoin"], "did you mean --version?"),
    ],
)
def test_mistakes_in_other_places(run: Run, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer"),
        ("config.json", None, "no config.json"),
        ("config.json", b'{"hidden_siz": 3}', "hidden_siz"),
        ("model.safetensors", None, "holds no weights"),
        ("model.safetensors", b"\0" * 20, "is not a whole safetensors file"),
    ],
)
def test_folders_that_are_no_models(
    run: Run, folder: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    for path in folder.iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is not None:
        (tmp_path / file).write_bytes(content)
    ended = run("generate", "x", "--model", tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_input_that_is_no_text(run: Run, folder: Path) -> None:
    ended = run("generate", "-", "--model", folder, stdin=b"ab\xff")
    assert ended == (2, "", "demiurgic: Standard input is not UTF-8 text: byte 2 is wrong.\n")
    ended = run("generate", "a\udcff", "--model", folder)  # how a byte that is no UTF-8 comes in an argument
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_failed_generation_ends_with_one(run: Run, folder: Path, tmp_path: Path, rows: int) -> None:
    model = DemiurgicForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3] = torch.nan
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    ended = run("generate", "x", "--model", tmp_path, "--num-return-sequences", rows)
    assert (ended.code, ended.err.count("\n")) == (1, rows)
    assert "lm_head.weight" in ended.err
    ended = run("generate", "x", "--model", tmp_path, "--num-return-sequences", rows, "--json")
    assert (ended.code, json.loads(ended.out)["finish_reasons"]) == (1, ["error"] * rows)
    assert all("lm_head.weight" in error for error in json.loads(ended.out)["errors"])


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_a_traceback_for_those_who_ask(run: Run, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "environment":
        monkeypatch.setenv("DEMIURGIC_DEBUG", "1")
    ended = run("generate", "x", "--model", "/nowhere", *(["--debug"] if way == "flag" else []))
    assert (ended.code, ended.err.startswith("Traceback")) == (2, True)


# ---- Ctrl-C, pipes, terminals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "as_json"), [(1, False), (2, False), (1, True), (2, True)])
def test_what_an_interrupted_generation_has_made_is_printed(
    run: Run, folder: Path, rows: int, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(cli.Generation):
        steps = 0

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **{**keywords, "interruptible": True})  # a step at a time

        def advance(self) -> bool:
            self.steps += 1
            if self.steps > 4:
                raise KeyboardInterrupt
            return super().advance()

    monkeypatch.setattr(cli, "Generation", Interrupted)
    flags = ["--num-return-sequences", rows, "--seed", 2, "--eos-token-id", "[]", *(["--json"] if as_json else [])]
    ended = run("generate", "x", "--suffix", "z", "--model", folder, "--no-do-sample", *flags)
    assert (ended.code, ended.err) == (130, "")
    if as_json:
        got = json.loads(ended.out)
        assert got["finish_reasons"] == ["cancelled"] * rows
        assert all(1 <= length <= 4 for length in got["completion_tokens"])
    elif rows > 1:
        assert ended.out.count(" tokens · ended by cancelled") == rows
    else:
        assert ended.out.startswith("x")
        assert len(ended.out) > 1
        assert not ended.out.endswith("z")


def test_ctrl_c_on_a_terminal(folder: Path) -> None:
    master, slave = pty.openpty()
    # The terminal sends signals to the session that it belongs to.
    program = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "from demiurgic.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = ["--model", str(folder), "--eos-token-id", "[]", "--max-new-tokens", "100000"]
    with subprocess.Popen(
        [sys.executable, "-c", program, "generate", "abc", *flags],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        cwd=folder,
    ) as process:
        os.close(slave)
        shown = b""
        while len(shown.partition(b"abc")[2]) < 100:  # the completion has begun
            shown += os.read(master, 65536)
        os.write(master, b"\x03")
        shown += read_all(master)
    os.close(master)
    assert process.returncode == 130, shown[-1000:]
    assert b"Traceback" not in shown
    assert shown.endswith(b"\r\n")


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    # More than a pipe holds, or the command could have written everything before the reader leaves.
    flags = ["--model", str(folder), "--eos-token-id", "[]", "--max-new-tokens", "100000"]
    command = [sys.executable, "-m", "demiurgic", "generate", "abc", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"abc"
        process.stdout.close()
        said = process.stderr.read().splitlines()
    assert len(said) == 1, said
    assert b"warning" in said[0]  # of more positions than the model was trained on
    assert process.returncode == 141


def test_a_terminal_shows_the_text_and_what_it_took(terminal: Run, folder: Path) -> None:
    flags = ["--suffix", "z", "--max-new-tokens", 5, "--eos-token-id", "[]", "--seed", 4]
    ended = terminal("generate", "x\x1b[31m\x9b\ty", "--model", folder, *flags)
    given = "\x1b[2mx␛[31m\ufffd\ty\x1b[0m"
    assert ended.code == 0
    assert ended.out.startswith(given)
    text, _, summary = ended.out.removeprefix(given).partition("\x1b[2mz\x1b[0m\n")
    assert text
    assert summary.startswith("\x1b[2m5 tokens · ")
    assert summary.endswith(" tokens/s · ended by length · seed 4\x1b[0m\n")


@pytest.mark.parametrize("flags", [["--num-return-sequences", 3], ["--json"]])
def test_a_terminal_shows_progress_where_nothing_streams(terminal: Run, folder: Path, flags: list[Any]) -> None:
    ended = terminal("generate", "x", "--model", folder, "--max-new-tokens", 5, *flags)
    assert ended.code == 0
    assert " tokens/s" in ended.out
    assert "\x1b[?25l" in ended.out  # the cursor is hidden while the bar moves
    assert ended.out.rfind("\x1b[?25h") < ended.out.rfind('"texts"' if flags == ["--json"] else "# 3 of 3")


# ---- the other commands ---------------------------------------------------------------------------------------------


def test_help_tells_every_option(run: Run) -> None:
    ended = run("generate", "--help")
    words = " ".join(ended.out.split())
    assert ended.code == 0
    for name, option in OPTIONS.items():
        assert "--" + name.replace("_", "-") in words
        assert " ".join(option["doc"].split()[:4]) in words
    assert "default 100, in balanced_code 512]" in words
    assert run("--help") == run() == run("-h")
    assert run().code == 0


def test_options_lists_the_table(run: Run) -> None:
    assert report(run("options", "--json")) == json.loads(json.dumps(_C.options()))
    preset = {row["name"]: row["default"] for row in report(run("options", "--preset", "creative_code", "--json"))}
    assert (preset["top_k"], preset["max_new_tokens"]) == (100, 512)
    ended = run("options")
    assert ended.code == 0
    assert all(name in ended.out for name in OPTIONS)


def test_info_and_version(run: Run) -> None:
    ended = run("info", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["problem"] is None
    assert run("info").code == 0
    assert run("--version").out.startswith("demiurgic ")
