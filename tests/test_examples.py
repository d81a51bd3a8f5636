"""The examples run: both scripts on tiny sizes, the notebook as it stands, whose committed outputs are whole."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import install
from models import tiny_model
from nbclient import NotebookClient

import demiurgic
from demiurgic import _C
from demiurgic.loading import SHIPPED_MODELS

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "generation.ipynb"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, EXAMPLES / script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")


def printed(script: str, *arguments: str | Path) -> str:
    result = run(script, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as a user has it: config.json, model.safetensors, tokenizer.json."""
    tokenizer = (SHIPPED_MODELS["tiny"] / "tokenizer.json").read_bytes()
    tiny_model(vocab_size=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    return tmp_path


def load_demo() -> Any:
    spec = importlib.util.spec_from_file_location("improved_generation", EXAMPLES / "test_improved_generation.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where typer looks for the annotations' names
    spec.loader.exec_module(module)
    return module


demo = load_demo()


def test_the_demo_needs_no_checkpoint() -> None:
    out = printed("test_improved_generation.py", "--new-tokens", "8")
    assert "A test model with random weights: 1,344,128 parameters" in out
    for name in [*demo.STRATEGIES, *(f"preset {name}" for name in demo.PRESETS)]:
        assert re.search(rf"│ {re.escape(name)} +│ 8 +│ +\d+ +│ -\d", out), f"{name} is missing in:\n{out}"
    assert len(re.findall(r"│ yes +│", out)) == 11 and not re.search(r"│ NO +│", out), out
    assert re.search(r"cache on = off +│ yes +│ [\d.]+ s on, [\d.]+ s off", out), out


def test_the_demo_takes_a_checkpoint(checkpoint: Path) -> None:
    out = printed("test_improved_generation.py", checkpoint, "--new-tokens", "8", "--prompt", "import os")
    parameters = demiurgic.load(checkpoint)[0].num_parameters()
    assert f"{parameters:,} parameters" in out.replace("\n", "") and "random weights" not in out
    failed = run("test_improved_generation.py", checkpoint / "nowhere")
    assert failed.returncode == 1 and "There is no model and no folder" in failed.stderr


def test_the_demo_shows_every_preset_and_is_no_test_module() -> None:
    assert set(demo.PRESETS) == set(_C.presets())
    assert not [name for name in vars(demo) if name.lower().startswith("test")], "pytest would collect these"


class Forgetful(demo.Demo):  # type: ignore[name-defined,misc]
    """A generate that ignores an option."""

    def __init__(self, ignored: str) -> None:
        super().__init__(*demo.make_model(), "def f(x):\n", 48)  # enough tokens to repeat one
        self.ignored = ignored

    def generate(self, prompts: Any = None, **options: Any) -> Any:
        if self.ignored == "seed":  # a draw of torch's instead
            options["seed"] = None
        else:
            options.pop(self.ignored, None)
        return super().generate(prompts, **options)


BROKEN = [
    ("seed", {"a seed repeats its tokens", "3 copies, each with a seed"}),
    ("presence_penalty", {"presence_penalty 100"}),
    ("bad_token_ids", {"bad_token_ids"}),
    ("logit_bias", {"logit_bias +1000"}),
    ("stop_token_ids", {"stop ids, min_new_tokens"}),
    ("min_new_tokens", {"stop ids, min_new_tokens"}),
]


@pytest.mark.parametrize(("ignored", "missed"), BROKEN)
def test_the_demo_notices_what_does_not_hold(ignored: str, missed: set[str]) -> None:
    rows = list(demo.features(Forgetful(ignored)))
    assert {row.name for row in rows if row.holds is False} == missed


def test_evaluation_in_training_learns_and_repeats() -> None:
    sizes = "--steps 12 --evaluate-every 5 --batch 2 --length 64 --hidden-size 32 --layers 1 --files 10 --rate 0.03"
    arguments = sizes.split()
    out = printed("eval_in_training.py", *arguments)
    rows = re.findall(r"^step (\d+): held-out loss ([\d.]+)\n    (['\"].+['\"])$", out, re.M)
    assert [int(step) for step, _, _ in rows] == [0, 5, 10, 12]
    assert float(rows[-1][1]) < float(rows[0][1]) - 0.1
    assert len({sample for _, _, sample in rows}) == 4
    assert printed("eval_in_training.py", *arguments) == out


@pytest.mark.filterwarnings("default")  # those of jupyter's packages are theirs
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(kernel_name="python3", prefix=str(tmp_path))  # this interpreter, whatever kernels a user has
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    check_outputs(notebook)


def test_the_notebook_is_committed_with_its_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    """Every cell has run once, in order; none failed; each that shows something has shown it; one plot."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert all(cell.outputs for cell in cells)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
