"""Which PyTorch to build against: the one of the environment that Demiurgic is being installed into.

A compiled extension fits one minor version of torch, and build isolation hides the torch that the user has. This
module finds it all the same. It is a scikit-build-core metadata provider (pyproject.toml, `[[tool.dynamic-metadata]]`)
and, run as a script, it tells CMakeLists.txt the same answer. Only where the target has no torch is one brought.

Where the target is, by front end:
    pip             this interpreter: isolation is a PYTHONPATH and a PYTHONNOUSERSITE, nothing else
    uv              an ancestor process knows: its --python, its VIRTUAL_ENV, the .venv of its directory
    python -m build no target is named: the interpreter that runs it, then VIRTUAL_ENV, CONDA_PREFIX and PATH
DEMIURGIC_TORCH_PYTHON=/path/to/python overrides the search. Standard library only: it runs in an empty environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BROUGHT = "2.13.0"  # the torch that is brought where the target environment has none
OLDEST, NEWEST = (2, 11), (2, 15)  # minor versions that Demiurgic is written for
OVERRIDE = "DEMIURGIC_TORCH_PYTHON"
_ANSWER = "DEMIURGIC_TORCH_FOUND"  # carries the provider's answer to the CMake it starts

# Looks for the package without importing it: an import costs seconds and may want a driver.
_PROBE = """
import importlib.util, json, sys, sysconfig
sys.path[:] = [p for p in sys.path if p]
spec = importlib.util.find_spec("torch")
print(json.dumps({"abi": [sys.implementation.name, *sys.version_info[:2], sysconfig.get_config_var("SOABI")],
                  "origin": spec.origin if spec else None}))
"""


@dataclass(frozen=True)
class Torch:
    """An installed torch."""

    root: str  # the folder of the package
    version: str
    cuda: str | None  # the CUDA that it was built with; None: a CPU build
    cxx11_abi: int
    how: str  # it was found

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = re.match(r"(\d+)\.(\d+)", self.version).groups()  # type: ignore[union-attr]
        return int(major), int(minor)


@dataclass(frozen=True)
class Candidate:
    python: Path
    how: str


@dataclass(frozen=True)
class Process:
    argv: Sequence[str]
    cwd: Path
    environ: Mapping[str, str]

    @property
    def name(self) -> str:
        return Path(self.argv[0]).name if self.argv else ""


# --- the hooks of scikit-build-core ---------------------------------------------------------------

_state = "wheel"


def build_state(state: str) -> None:
    global _state
    _state = state


def get_requires_for_dynamic_metadata(settings: Mapping[str, Any]) -> list[str]:
    # No hook says that only an sdist is wanted; pip, build and uv all name the backend hook on the command line.
    if any("get_requires_for_build_sdist" in argument for argument in sys.orig_argv):
        return []
    torch = find_torch()
    if torch is None:
        announce(f"building against torch {BROUGHT}: the target environment has no torch, so it is brought")
        return [f"torch=={BROUGHT}"]
    check_supported(torch)
    return []


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    dependencies = list(settings["dependencies"])
    if _state == "sdist":
        oldest, newest = ("{}.{}".format(*v) for v in (OLDEST, NEWEST))
        return {"dependencies": [*dependencies, f"torch>={oldest},<={newest}.99"]}
    torch = require_torch()
    os.environ[_ANSWER] = json.dumps(asdict(torch))
    return {"dependencies": [*dependencies, "torch=={}.{}.*".format(*torch.minor)]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    return {"dependencies": True}


# --- the search -----------------------------------------------------------------------------------


def require_torch() -> Torch:
    torch = find_torch()
    if torch is None:
        raise SystemExit(
            f"demiurgic: no torch found for {sys.executable}. Install one (pip install torch=={BROUGHT}), name the "
            f"interpreter that has it ({OVERRIDE}=/path/to/python), or build without --no-build-isolation, which "
            "brings it."
        )
    check_supported(torch)
    announce(f"building against torch {torch.version} at {torch.root} ({torch.how})")
    return torch


def find_torch() -> Torch | None:
    """The torch of the target environment; None if it has none."""
    if answer := os.environ.get(_ANSWER):
        return Torch(**json.loads(answer))
    if override := os.environ.get(OVERRIDE):
        torch = torch_of(Candidate(Path(override).absolute(), f"{OVERRIDE}={override}"))
        if torch is None:
            raise SystemExit(
                f"demiurgic: {OVERRIDE}={override} is no interpreter of this kind ({sysconfig.get_config_var('SOABI')})"
                " with a torch installed. Give the path of a Python executable that has one, or unset the variable."
            )
        return torch
    if torch := torch_in_process():
        return torch
    return next(filter(None, map(torch_of, candidates())), None)


def torch_in_process() -> Torch | None:
    """Without isolation this is the user's torch; with isolation it is there only if this build has brought it."""
    spec = importlib.util.find_spec("torch")
    isolated = under_pip_isolation() or is_throwaway(Path(sys.prefix))
    how = "brought: the target environment has none" if isolated else f"importable by {sys.executable}"
    return read_torch(spec.origin if spec else None, how)


def candidates() -> Iterator[Candidate]:
    """Interpreters whose torch may be meant, best first. Where the front end names its target, that one alone."""
    yield Candidate(Path(sys.executable), "the installing interpreter")
    if under_pip_isolation() or not is_throwaway(Path(sys.prefix)):
        return
    for process in ancestors():
        if process.name in ("uv", "uvx"):
            yield from uv_target(process)
            return
        if process.name.startswith("python") and any(a == "build" or a.endswith("build") for a in process.argv[1:4]):
            yield Candidate(
                process.cwd / (shutil.which(process.argv[0]) or process.argv[0]), "runs the build front end"
            )
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            yield Candidate(python_of(Path(prefix)), variable)
    for folder in os.get_exec_path():
        for name in ("python3", "python"):
            python = Path(folder, name)
            if python.is_file() and not python.is_relative_to(sys.prefix):
                yield Candidate(python, "PATH")


def uv_target(uv: Process) -> Iterator[Candidate]:
    """The environment that this `uv` command installs into, by uv's own rules."""
    named = option(uv.argv, "--python", "-p") or uv.environ.get("UV_PYTHON")
    if named:
        yield Candidate(interpreter(named, uv.cwd), f"uv --python {named}")
        return
    prefixes = [(uv.environ.get(name), f"{name} of uv") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
    project = uv.environ.get("UV_PROJECT_ENVIRONMENT", ".venv")
    folders = [(str(folder / project), f"{project} of {folder}") for folder in (uv.cwd, *uv.cwd.parents)]
    # `uv pip` prefers the active environment, `uv sync` and `uv run` the project's own.
    for prefix, how in [*prefixes, *folders] if "pip" in uv.argv[1:3] else [*folders, *prefixes]:
        if prefix and python_of(Path(prefix)).exists():
            yield Candidate(python_of(Path(prefix)), how)
            return
    if python := shutil.which("python3", path=uv.environ.get("PATH")):
        yield Candidate(Path(python), "PATH of uv")


def interpreter(name: str, cwd: Path) -> Path:
    """uv's --python: a path (relative to uv's own directory), an environment's folder, a version or a program."""
    path = cwd / name
    if path.is_dir():
        return python_of(path)
    if path.exists():
        return path
    return Path(shutil.which(name) or shutil.which(f"python{name}") or name)


def option(argv: Sequence[str], *names: str) -> str | None:
    for i, argument in enumerate(argv):
        for name in names:
            if argument == name and i + 1 < len(argv):
                return argv[i + 1]
            if argument.startswith(f"{name}="):
                return argument[len(name) + 1 :]
    return None


def python_of(prefix: Path) -> Path:
    return prefix / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def under_pip_isolation() -> bool:
    return "pip-build-env-" in os.environ.get("PYTHONPATH", "")


def is_throwaway(prefix: Path) -> bool:
    """Whether a front end made this environment for the build alone: uv in `builds-v0/`, build as `build-env-...`."""
    return any(re.match(r"builds-v\d+$|(pdm-)?build-env-", part) for part in prefix.parts)


def ancestors() -> Iterator[Process]:
    """This process's parent, grandparent and so on. Empty where the system does not say."""
    pid = os.getppid()
    while pid > 1:
        proc = Path("/proc", str(pid))
        try:
            if proc.exists():
                strings = [(proc / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
                argv, environ = ([s for s in string.split("\0") if s] for string in strings)
                cwd = (proc / "cwd").resolve()
                parent = re.search(r"^PPid:\s*(\d+)", (proc / "status").read_text(), re.M)
                pid = int(parent[1]) if parent else 0
            else:  # macOS: the command line is all that there is; a relative path is taken from our own directory
                line = subprocess.run(["ps", "-o", "ppid=,args=", "-p", str(pid)], capture_output=True, text=True)
                parent_id, *argv = line.stdout.split()
                pid, cwd, environ = int(parent_id), Path.cwd(), []
        except (OSError, ValueError):
            return
        yield Process(argv, cwd, dict(s.split("=", 1) for s in environ if "=" in s))


def torch_of(candidate: Candidate) -> Torch | None:
    """The candidate's torch, if it has one that this interpreter could load too."""
    hidden = {"PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME", "__PYVENV_LAUNCHER__"}
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        probe = subprocess.run(
            [str(candidate.python), "-c", _PROBE], env=environ, capture_output=True, text=True, timeout=60
        )
        found = json.loads(probe.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    ours = [sys.implementation.name, *sys.version_info[:2], sysconfig.get_config_var("SOABI")]
    if found["abi"] != ours:
        return None
    return read_torch(found["origin"], f"{candidate.how}: {candidate.python}")


def read_torch(origin: str | None, how: str) -> Torch | None:
    """What torch's own files say of it; `origin` is its `__init__.py` (None: not installed, or a stray folder)."""
    if origin is None:
        return None
    root = Path(origin).parent
    version = runpy.run_path(str(root / "version.py"))
    config = root / "share/cmake/Torch/TorchConfig.cmake"
    abi = re.search(r"_GLIBCXX_USE_CXX11_ABI=(\d)", config.read_text()) if config.exists() else None
    return Torch(str(root), version["__version__"], version["cuda"], int(abi[1]) if abi else 1, how)


def check_supported(torch: Torch) -> None:
    oldest, newest = ("{}.{}".format(*v) for v in (OLDEST, NEWEST))
    if torch.minor < OLDEST:
        raise SystemExit(
            f"demiurgic: torch {torch.version} ({torch.how}) is too old; torch {oldest} to {newest} can be built "
            f"against. Upgrade it (pip install 'torch>={oldest}') and install again."
        )
    if torch.minor > NEWEST:
        announce(f"warning: torch {torch.version} is newer than {newest}, the newest that Demiurgic is written for")


def announce(line: str) -> None:
    print(f"demiurgic: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":  # CMakeLists.txt asks
    json.dump(asdict(require_torch()), sys.stdout)
