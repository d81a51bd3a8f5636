"""examples/cpp, built and run by the commands of its README: the tokens are Python's, and errors are sentences.

The core takes a minute or more to compile, so this runs only where DEMIURGIC_REQUIRE=cpp asks for it, as .ci/run does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import fixed_logits_model, tiny_model

import demiurgic
from demiurgic import DemiurgicForCausalLM, GenerationConfig

if os.environ.get("DEMIURGIC_REQUIRE") != "cpp":
    pytest.skip("builds the C++ example, which takes minutes; DEMIURGIC_REQUIRE=cpp runs it", allow_module_level=True)

ROOT = Path(__file__).parents[1]
BUILD, PROGRAM = ROOT / "build" / "cpp", ROOT / "build" / "cpp" / "generate"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "examples/cpp/README.md").read_text(), re.S)
(BUILD_COMMANDS, RUN_COMMAND), (WRITE_FILE,) = (
    [code for kind, code in BLOCKS if kind == k] for k in ("bash", "python")
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """With as many threads as this process has, because the order of sums may depend on it."""
    environment = os.environ | {"PATH": PATH, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    missing = [tool for tool in ("cmake", "ninja", "c++") if not shutil.which(tool, path=PATH)]
    assert not missing, f"The example's build needs {', '.join(missing)}, not found on PATH."
    result = run("bash", "-ec", BUILD_COMMANDS)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def write(model: DemiurgicForCausalLM, path: Path) -> Path:
    """What the README's lines write for `model`."""
    lines = WRITE_FILE.replace('demiurgic.load("tiny")', "model, tokenizer").replace("build/tiny.pt", str(path))
    assert "model, tokenizer = model, tokenizer" in lines and str(path) in lines
    exec(lines, {"model": model, "tokenizer": demiurgic.load("tiny")[1]})
    return path


def rows_of(result: subprocess.CompletedProcess[str]) -> list[list[int]]:
    assert (result.returncode, result.stderr) == (0, ""), result
    return [[int(token) for token in line.split()] for line in result.stdout.splitlines()]


def test_readme() -> None:
    printed = run(sys.executable, "-c", WRITE_FILE)
    assert printed.returncode == 0, printed.stderr
    model, tokenizer = demiurgic.load("tiny")
    prompt = tokenizer.encode("def fibonacci(n):", add_bos=True)
    assert printed.stdout.split() == [str(token) for token in prompt]
    assert RUN_COMMAND.rstrip().endswith(printed.stdout.strip())  # the ids that the README shows are those it prints

    out = model.generate([prompt], generation_config=GenerationConfig.balanced_code(32), seed=7)
    assert rows_of(run("bash", "-ec", RUN_COMMAND)) == [out[0, len(prompt) :].tolist()]


@pytest.mark.parametrize(
    ("config", "preset", "options"),
    [
        ({}, "greedy", {}),
        ({}, "balanced_code", {"max_new_tokens": 40}),
        ({}, "creative_code", {"num_return_sequences": 3, "seed": 2**64 - 1, "max_new_tokens": 30}),
        ({"eos_token_id": [3, 4, 5, 6]}, "natural_text", {"num_return_sequences": 4, "max_new_tokens": 99}),
        ({"eos_token_id": 2}, "completion_fim", {"max_new_tokens": 50, "min_p": 0.05, "use_cache": 0}),
        ({"num_key_value_heads": None, "tie_word_embeddings": True}, "precise_code", {"max_new_tokens": 20}),
        ({"activation_function": "gelu", "attention_bias": True}, "precise_code", {"max_new_tokens": 20}),
        ({"attention_head_dim": 16}, "precise_code", {"max_new_tokens": 20}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "precise_code", {"max_new_tokens": 20}),
    ],
)
def test_tokens_are_pythons(tmp_path: Path, config: dict[str, Any], preset: str, options: dict[str, Any]) -> None:
    model = tiny_model(**config)
    given = [f"{name}={value}" for name, value in options.items()]
    found = rows_of(run(PROGRAM, write(model, tmp_path / "model.pt"), preset, *given, "5", "96", "0"))
    if "use_cache" in options:
        options = options | {"use_cache": bool(options["use_cache"])}
    expected = model.generate(
        [[5, 96, 0]],
        generation_config=getattr(GenerationConfig, preset)(**({"seed": 0} | options)),
        return_dict_in_generate=True,
    )
    assert found == expected.completions


def test_core_links_no_python() -> None:
    libraries = run(*(["otool", "-L"] if sys.platform == "darwin" else ["ldd"]), PROGRAM)
    assert libraries.returncode == 0 and "torch_cpu" in libraries.stdout
    assert not re.search("lib(torch_)?python", libraries.stdout)
    (core,) = BUILD.rglob("libdemiurgic_core.a")
    symbols = run("nm", core)
    assert symbols.returncode == 0 and "Engine" in symbols.stdout
    assert not re.search(r"\b_{0,2}(Py[A-Z_]|THP|\w*pybind11)", symbols.stdout)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda file: {name: value for name, value in file.items() if name != key}


def config_with(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda file: file | {"config": file["config"] | changed}


def three_kv_heads(file: dict[str, Any]) -> dict[str, Any]:
    """Of weights that fit: keys and values of 3 * 8 rows."""
    keys = {name: torch.zeros(24, 32) for name in file["weights"] if re.search("[kv]_proj", name)}
    return config_with(num_key_value_heads=3)(file | {"weights": file["weights"] | keys})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: torch.ones(2), r"holds no dict; write it with the lines of README\.md\.$"),
        (lambda file: file | {"config": object}, r"is not a whole file of torch\.save, or holds more than dicts"),
        (without("weights"), r"The entry 'weights' of the file is missing or is not a dict\.$"),
        (without("rotary_scaling"), r"'rotary_scaling' of the file is missing or is not a number\.$"),
        (lambda file: file | {"weights": {"a": 1}}, r"'weights' .* is not a dict of names and tensors\.$"),
        (lambda file: file | {"weights": {}}, r"The model has no parameter model\.embed_tokens\.weight\.$"),
        (config_with(vocab_size="97"), r"'vocab_size' .* is not an integer\.$"),
        (config_with(vocab_size=98), r"embed_tokens\.weight has the shape \[97, 32\], but .* says \[98, 32\]\.$"),
        (config_with(num_hidden_layers=-1), r"'num_hidden_layers' .* is not 0 to \d+\.$"),
        (config_with(num_attention_heads=0), r"'num_attention_heads' .* is not 1 or more\.$"),
        (three_kv_heads, r"has 4 heads and 3 key/value heads; the first must be a multiple"),
        (
            lambda file: file | {"rotary_frequencies": torch.ones(3)},
            r"heads of size 8 and the config 3 rotary frequencies; there must be one",
        ),
        (config_with(activation_function="mish"), r"'activation_function' .* is not swiglu, swish"),
        (config_with(eos_token_id="</s>"), r"'eos_token_id' .* is not an integer"),
    ],
)
def test_a_wrong_file(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    path = write(tiny_model(), tmp_path / "model.pt")
    torch.save(change(torch.load(path)), path)
    refused(run(PROGRAM, path, "greedy", "1"), words)


def refused(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(words, result.stderr.strip()) and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("content", [None, b"", b"no zip file", "half", "flipped"])
def test_a_damaged_file(tmp_path: Path, content: bytes | str | None) -> None:
    whole = write(tiny_model(), tmp_path / "whole.pt").read_bytes()
    damaged = {"half": whole[: len(whole) // 2], "flipped": bytes(255 - b for b in whole[:400]) + whole[400:]}
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(damaged.get(content, b"") if isinstance(content, str) else content)
    words = "is not a whole file" if content else r"^generate: There is no file .*model\.pt that can be read"
    refused(run(PROGRAM, path, "greedy", "1"), words)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write(tiny_model(), tmp_path_factory.mktemp("cpp") / "model.pt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("greddy 1", r"There is no preset 'greddy'; there are greedy, balanced_code, .*completion_fim\.$"),
        ("greedy temprature=1 1", r"There is no generation option 'temprature'; did you mean 'temperature'\?$"),
        ("greedy top_p=1.5 1", r"top_p is 1\.5, but must be "),
        ("greedy top_k=many 1", r"top_k is 'many', which is not a number that fits\.$"),
        ("greedy seed=-1 1", r"seed is '-1', which is not a number that fits\.$"),
        ("greedy use_cache=yes 1", r"use_cache is 'yes', but must be 0 or 1\.$"),
        ("greedy eos_token_id=1 1", r"takes no lists, so it cannot set eos_token_id\.$"),
        ("greedy min_new_tokens=9 max_new_tokens=8 1", r"min_new_tokens is 9, but must be at most max_new_tokens"),
        ("greedy one", r"A token id is 'one', which is not a number that fits\.$"),
        ("greedy 97", r"input_ids holds the id 97 in row 0, but the vocabulary has the ids 0 to 96\.$"),
        ("greedy max_new_tokens=5", r"The prompt of row 0 is empty"),
    ],
)
def test_wrong_arguments(model_file: Path, arguments: str, words: str) -> None:
    refused(run(PROGRAM, model_file, *arguments.split()), words)


def test_too_few_arguments_show_the_usage() -> None:
    for arguments in ([], ["model.pt"], ["model.pt", "greedy"]):
        result = run(PROGRAM, *arguments)
        assert result.returncode == 1 and result.stderr.startswith("usage: generate MODEL PRESET")


def test_a_row_that_fails(tmp_path: Path) -> None:
    model = fixed_logits_model([0.0, float("nan"), 1.0])
    result = run(PROGRAM, write(model, tmp_path / "model.pt"), "greedy", "1")
    assert result.returncode == 1 and "lm_head.weight" in result.stderr
