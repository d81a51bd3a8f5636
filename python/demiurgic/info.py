"""What is installed: `demiurgic info`, or `python -m demiurgic.info` where even the import of Demiurgic fails."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from demiurgic.build_check import check_build


def info() -> dict[str, Any]:
    """Versions, the build, the machine's devices and the kernel of each entry on them.

    Never raises for a broken installation: `"problem"` then says what is wrong and how to repair it, else it is None.
    JSON types only.
    """
    problem = _problem()
    devices = _devices()
    return {
        "versions": _versions(),
        "build": _build(),
        "devices": devices,
        "kernels": {} if problem else _kernels(devices),
        "problem": problem,
    }


def _problem() -> str | None:
    try:
        check_build()
        from demiurgic import _C  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error)
    return None


def _versions() -> dict[str, str | None]:
    return {
        "demiurgic": _version("demiurgic"),
        "torch": _torch_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_version() -> str | None:
    try:
        import torch
    except (ImportError, OSError):
        return _version("torch")
    return str(torch.__version__)  # the package's own version may leave out "+cu130"


def _build() -> dict[str, Any] | None:
    try:
        from demiurgic import _build_info as build
    except ImportError:
        return None
    return {
        "torch": build.TORCH_VERSION,
        "cuda": build.TORCH_CUDA,
        "torch found": build.TORCH_FOUND,
        "cuda kernels": build.CUDA_ARCHITECTURES or f"none, {_why_no_cuda_kernels(build.CUDA_NOTE)}",
        "cxx11 abi": build.CXX11_ABI,
        "compiler": build.COMPILER,
        "build type": build.BUILD_TYPE,
        "commit": build.COMMIT,
    }


def _why_no_cuda_kernels(note: str | None) -> str:
    return f"GPUs use the plain ATen path: {note}" if note else "for torch has no CUDA"


def _devices() -> dict[str, Any]:
    """The devices that torch can use here, by type; only the number of cores where torch does not import."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices: dict[str, Any] = {"cpu": {"cores": cores}}
    try:
        import torch
    except (ImportError, OSError):
        return devices
    devices["cpu"] |= {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        devices["cuda"] = [
            {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory GiB": _gib(gpu.total_memory)}
            for gpu in gpus
        ]
    if torch.backends.mps.is_available():
        devices["mps"] = {"memory GiB": _gib(torch.mps.recommended_max_memory())}
    return devices


def _gib(count: int) -> float:
    return round(count / 2**30, 1)


def _kernels(devices: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The implementation of each entry; those for CUDA also where the build has them and the machine no GPU."""
    from demiurgic import _C, _build_info

    built = ["cuda"] if _build_info.CUDA_ARCHITECTURES else []
    return {device: dict(_C.kernels_info(device)) for device in dict.fromkeys([*devices, *built])}


def show(facts: dict[str, Any]) -> None:
    """Prints `info()` as aligned lines."""
    for section in ("versions", "build", "devices"):
        print(section)
        for key, value in (facts[section] or {"demiurgic": "not built"}).items():
            print(f"  {key:<16}{_line(value)}")
    for device, kernels in facts["kernels"].items():
        print(f"kernels on {device}")
        for entry, implementation in kernels.items():
            print(f"  {entry:<16}{implementation}")
    if facts["problem"]:
        print(f"problem\n  {facts['problem']}")


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_line, value))
    return "-" if value is None else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if Demiurgic works here, else 1."""
    parser = argparse.ArgumentParser(prog="python -m demiurgic.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(arguments).json
    facts = info()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        show(facts)
    return 1 if facts["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
