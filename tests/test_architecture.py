"""Includes and imports point downward only (docs/architecture.md draws it)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Lowest first. A file may include those of lower rows, and its own header; a new file needs a place here.
CXX_LAYERS = [
    {"philox", "host_memory"},
    {"generation_config", "kv_blocks", "kernels", "ngram_index", "draft_budget", "stopwatch"}
    | {"byte_automaton", "token_bytes", "neutral_mode", "home_stream", "cache_budget"},
    {"token_edits", "model_config", "prompt_lookup", "function_end", "code_block_end", "repetition_guard", "reports"}
    | {"prefix_index", "step_sampling"},
    {"row_text"},
    {"sequence"},
    {"stopping", "weights"},
    {"scheduler", "kv_cache"},
    {"batch", "sampler", "scorer", "fingerprint", "steps_ahead"},
    {"decoder", "rounds", "hooks"},
    {"draft_model", "late_loop"},
    {"drafter"},
    {"engine"},
    {"engine_prefixes", "engine_cache"},
    {"module_parameters"},
    {"bindings"},
    {"bind_options", "bind_model", "bind_hooks", "bind_texts", "bind_engine"},
]
# What decides who runs knows integers only, not even through a header of ours.
INTEGERS_ONLY = {"generation_config", "philox", "kv_blocks", "token_edits", "sequence", "stopping", "scheduler"}
INTEGERS_ONLY |= {"ngram_index", "prompt_lookup", "draft_budget"}
INTEGERS_ONLY |= {"byte_automaton", "token_bytes", "function_end", "code_block_end", "repetition_guard", "row_text"}
INTEGERS_ONLY |= {"reports", "prefix_index", "cache_budget", "step_sampling", "steps_ahead"}
KNOWS_PYTHON = CXX_LAYERS[-1] | {"bindings", "module_parameters"}
TENSORS = r"<(ATen|c10|torch|cuda)"
PYTHON = r"<(pybind11|Python\.h|torch/(csrc/utils/pybind|csrc/python|extension|python)|torch/csrc/autograd/python)"
MAY_ASK_FOR_DEVICE = ["kernels/kernels.cpp", "kernels/cuda/device.cuh"]
DEVICE = r"\s*#\s*(if|ifdef|ifndef|elif).*(CUDA|HIP|ROCM|MPS|METAL)"

PYTHON_LAYERS = [
    {"_C", "_build_info"},
    {"build_check", "caller", "config", "output", "printable"},
    {
        "rotary",
        "tokenizer",
        "info",
        "prompts",
        "progress",
        "cli_options",
        "text",
        "token_bytes",
        "reports",
        "text_stream",
        "prefix_file",
    },
    {"auto_length", "streamer", "html_view", "hooks"},
    {"live_weights", "stock_classes"},
    {"stock_processors", "stock_criteria"},
    {"stock_hooks"},
    {"engine"},
    {"streaming"},
    {"sessions"},
    {"display", "model"},
    {"checkpoint"},
    {"loading"},
    {"__init__"},  # the package itself: `import demiurgic`, `from demiurgic import __version__`
    {"cli"},
    {"__main__"},
]
COMPILED = PYTHON_LAYERS[0]
# Methods of the model that only call what is above it.
FRONT_DOORS = {("model", "checkpoint")}


def rank(layers: list[set[str]], name: str) -> int | None:
    return next((i for i, layer in enumerate(layers) if name in layer), None)


def cxx_problems(csrc: Path) -> Iterator[str]:
    files = {str(path.relative_to(csrc)): path for path in sorted(csrc.rglob("*")) if path.suffix in CXX_SUFFIXES}
    for file, path in files.items():
        text = path.read_text()
        part = part_of(file)
        place = rank(CXX_LAYERS, part)
        if place is None:
            yield f"{file} has no place in CXX_LAYERS"
            continue
        for include in re.findall(r'#include "([^"]+)"', text):
            other = rank(CXX_LAYERS, part_of(include))
            if include not in files:
                yield f"{file} includes {include}, which is not there (paths begin at csrc/)"
            elif other is None or (other >= place and part_of(include) != part):
                yield f"{file} includes {include}, which is not below it"
        if part not in KNOWS_PYTHON and re.search(f"#include {PYTHON}", text):
            yield f"{file} includes Python; only {' and '.join(sorted(KNOWS_PYTHON))} may"
        if path.suffix != ".cu" and file not in MAY_ASK_FOR_DEVICE and re.search(f"^{DEVICE}", text, re.M):
            yield f"{file} asks for the device in an #if; only {' and '.join(MAY_ASK_FOR_DEVICE)} may"
        if Path(file).match("kernels/cpu/isa_*.cpp") and (
            reached := [f for f in reachable(file, files) if tensors_in(files[f])]
        ):
            yield f"{file} reaches tensors, through {reached[0]}; it is compiled for instructions not every CPU has"
        if part in INTEGERS_ONLY and (reached := [f for f in reachable(file, files) if tensors_in(files[f])]):
            yield f"{file} reaches tensors, through {reached[0]}"


CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def part_of(file: str) -> str:
    return "kernels" if file.startswith("kernels/") else Path(file).stem


def tensors_in(path: Path) -> bool:
    return re.search(f"#include {TENSORS}", path.read_text()) is not None


def reachable(file: str, files: dict[str, Path]) -> list[str]:
    seen, waiting = [], [file]
    while waiting:
        current = waiting.pop()
        if current in files and current not in seen:
            seen.append(current)
            waiting += re.findall(r'#include "([^"]+)"', files[current].read_text())
    return seen


def python_problems(package: Path) -> Iterator[str]:
    for path in sorted(package.glob("*.py")):
        module = path.stem
        place = rank(PYTHON_LAYERS, module)
        if place is None:
            yield f"{module} has no place in PYTHON_LAYERS"
            continue
        for name in imports(ast.parse(path.read_text())):
            if name.split(".")[0] != "demiurgic":
                continue
            other = f"{name}.__init__".split(".")[1]
            if other not in COMPILED and not (package / f"{other}.py").exists() and not (package / other).is_dir():
                other = "__init__"  # a name of the package, not a module
            above = rank(PYTHON_LAYERS, other)
            if above is None or (above >= place and (module, other) not in FRONT_DOORS):
                yield f"{module} imports {other}, which is not below it"


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported at run time, wherever in the file; `if TYPE_CHECKING:` is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ("demiurgic." if node.level else "") + (node.module or "")
            is_package = module.strip(".") == "demiurgic"
            yield from (f"demiurgic.{alias.name}" for alias in node.names) if is_package else (module,)
        yield from imports(node)


def test_includes_point_downward():
    assert not list(cxx_problems(REPOSITORY / "csrc"))


def test_imports_point_downward():
    assert not list(python_problems(REPOSITORY / "python" / "demiurgic"))


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("sequence.h", '#include "scheduler.h"', "sequence.h includes scheduler.h, which is not below it"),
        ("engine.h", '#include "bindings.h"', "engine.h includes bindings.h, which is not below it"),
        ("kernels/reference.cpp", '#include "weights.h"', "reference.cpp includes weights.h, which is not below it"),
        ("batch.cpp", '#include "sampler.h"', "batch.cpp includes sampler.h, which is not below it"),
        ("batch.cpp", '#include "../batch.h"', "which is not there"),
        ("scheduler.cpp", "#include <ATen/ops/add.h>", "scheduler.cpp reaches tensors, through scheduler.cpp"),
        ("scheduler.h", '#include "sequence.h"', "scheduler.h reaches tensors, through sequence.h"),
        ("decoder.cpp", "#include <pybind11/stl.h>", "decoder.cpp includes Python"),
        ("decoder.cpp", "#include <torch/csrc/utils/pybind.h>", "decoder.cpp includes Python"),
        ("decoder.cpp", "#ifdef DEMIURGIC_CUDA", "decoder.cpp asks for the device"),
        ("sampler.cpp", "  # if defined(USE_CUDA)", "sampler.cpp asks for the device"),
        ("helpers.h", "", "helpers.h has no place"),
        ("kernels/cpu/isa_avx2.cpp", "#include <ATen/Parallel.h>", "isa_avx2.cpp reaches tensors"),
        ("kernels/cpu/isa_avx2.cpp", '#include "kernels/kernels.h"', "isa_avx2.cpp reaches tensors, through kernels/k"),
        ("kernels/cpu/isa_avx2.cpp", '#include "weights.h"', "isa_avx2.cpp includes weights.h, which is not below it"),
        ("kernels/cpu/isa_avx2.cpp", "#include <immintrin.h>", None),
        ("kernels/cpu/cpu_kernels.cpp", '#include "kernels/kernels.h"', None),
        ("batch.cpp", '#include "batch.h"\n#include "scheduler.h"', None),
        ("kernels/kernels.cpp", "#ifdef DEMIURGIC_CUDA", None),
        ("bindings.cpp", '#include "engine.h"\n#include <pybind11/stl.h>', None),
    ],
)
def test_a_planted_include_is_found(tmp_path, file, text, problem):
    headers = ["scheduler.h", "weights.h", "sampler.h", "batch.h", "engine.h", "bindings.h"]
    tree = dict.fromkeys(headers, "") | {
        "sequence.h": "#include <c10/core/Device.h>" * (problem or "").endswith("sequence.h"),
        "kernels/kernels.h": "#include <ATen/core/Tensor.h>",
    }
    for name, content in (tree | {file: text}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = [line for line in cxx_problems(tmp_path) if Path(file).name in line.split(" ")[0]]
    assert len(found) == (problem is not None) and (problem or "") in "".join(found)


@pytest.mark.parametrize(
    ("module", "text", "problem"),
    [
        ("engine", "from demiurgic.model import DemiurgicModel", "engine imports model"),
        ("engine", "from .model import DemiurgicModel", "engine imports model"),
        ("engine", "import demiurgic.model", "engine imports model"),
        ("engine", "from demiurgic import model", "engine imports model"),
        ("engine", "def f():\n    from demiurgic import model", "engine imports model"),
        ("engine", "import demiurgic", "engine imports __init__"),
        ("engine", "from demiurgic import __version__", "engine imports __init__"),
        ("config", "from demiurgic import rotary", "config imports rotary"),
        ("config", "from demiurgic.config import x", "config imports config"),
        ("tokenizer", "from . import cli", "tokenizer imports cli"),
        ("utils", "", "utils has no place"),
        ("engine", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from demiurgic import model", None),
        ("model", "from demiurgic.engine import generate", None),
        ("model", "from demiurgic.checkpoint import save_pretrained", None),
        ("cli", "from demiurgic import __version__, _C", None),
        ("cli", "import torch\nfrom demiurgic import engine, tokenizer", None),
    ],
)
def test_a_planted_import_is_found(tmp_path, module, text, problem):
    for name in set().union(*PYTHON_LAYERS) - COMPILED:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / f"{module}.py").write_text(text)
    found = list(python_problems(tmp_path))
    assert len(found) == (problem is not None) and (problem or "") in "".join(found)
