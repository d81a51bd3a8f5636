"""Refuses a torch that the extension was not built for, before the loader can fail on an undefined symbol."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse


def check_build() -> None:
    """Raises ImportError if the extension is missing or does not fit the installed torch; says how to repair it."""
    if find_spec("demiurgic._C") is None or find_spec("demiurgic._build_info") is None:
        raise ImportError(
            f"demiurgic: the compiled extension is not in {Path(__file__).parent}. Build it: run `pip install -e .` in "
            "the repository, and import from elsewhere if a copy without it shadows an installed one."
        )
    from demiurgic import _build_info as build

    if find_spec("torch") is None:
        raise ImportError(
            f"demiurgic: torch is not installed for {sys.executable}. Demiurgic was built for torch "
            f"{build.TORCH_VERSION}; repair: {shlex.quote(sys.executable)} -m pip install "
            f'"torch=={minor(build.TORCH_VERSION)}.*"'
        )
    import torch

    if problem := mismatch(build.TORCH_VERSION, build.TORCH_CUDA, torch.__version__, torch.version.cuda):
        raise ImportError(f"demiurgic: {problem} Repair: {repair_command()}")


def mismatch(built: str, built_cuda: str | None, installed: str, installed_cuda: str | None) -> str | None:
    """One sentence if the C++ interface may differ: it follows torch's minor version and, for CUDA, CUDA's version."""
    if minor(built) == minor(installed) and built_cuda == installed_cuda:
        return None
    return (
        f"this build is for torch {flavour(built, built_cuda)}, but torch {flavour(installed, installed_cuda)} is "
        "installed."
    )


def minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def flavour(version: str, cuda: str | None) -> str:
    return f"{version} ({f'CUDA {cuda}' if cuda else 'CPU'})"


def repair_command() -> str:
    """The command that builds Demiurgic anew against the installed torch, from where it was installed from."""
    source, editable, installer = "demiurgic", False, "pip"
    try:
        distribution = metadata.distribution("demiurgic")
        installer = (distribution.read_text("INSTALLER") or "pip").strip()
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        folder = Path(unquote(urlparse(origin.get("url", "")).path))
        if "dir_info" in origin and folder.is_dir():
            source, editable = str(folder), bool(origin["dir_info"].get("editable"))
    except metadata.PackageNotFoundError:
        pass
    python = shlex.quote(sys.executable)
    target = ("-e " if editable else "") + shlex.quote(source)
    no_wheel = " --no-binary demiurgic" if source == "demiurgic" else ""
    if installer == "uv":
        return f"uv pip install --python {python} --reinstall-package demiurgic --no-cache --no-deps{no_wheel} {target}"
    return f"{python} -m pip install --force-reinstall --no-cache-dir --no-deps{no_wheel} {target}"
