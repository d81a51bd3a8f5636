"""Which nvcc compiles the CUDA kernels and for which GPUs, or in one line why this build has none; CMakeLists.txt asks.

    python build_support/cuda_toolkit.py 13.0     # the CUDA that torch is built with

Without a fitting nvcc the package is built all the same: GPUs then run the plain ATen path. TORCH_CUDA_ARCH_LIST is
read as torch's own extensions read it. Standard library only: it runs in an empty environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "TORCH_CUDA_ARCH_LIST"
DEFAULT = "8.0;9.0+PTX"
LEAST = (8, 0)  # whose matrix instructions the kernels are written with

# As torch.utils.cpp_extension expands them; a longer name stands before its beginning.
NAMED = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


@dataclass(frozen=True)
class Architecture:
    """A compute capability as TORCH_CUDA_ARCH_LIST has it: 9.0, 9.0a, 8.0+PTX."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def number(self) -> str:
        return f"{self.major}{self.minor}{self.suffix}"

    def flags(self) -> list[str]:
        """nvcc's: machine code, and PTX, which later GPUs compile for themselves, where it is asked for."""
        codes = [f"sm_{self.number}", *([f"compute_{self.number}"] if self.ptx else [])]
        return [f"-gencode=arch=compute_{self.number},code={code}" for code in codes]

    def for_cmake(self) -> list[str]:
        return [f"{self.number}-real", *([f"{self.number}-virtual"] if self.ptx else [])]


@dataclass(frozen=True)
class Toolkit:
    nvcc: str = ""  # "": no kernels, and `note` says why
    architectures: str = ""  # as TORCH_CUDA_ARCH_LIST has them
    cmake_architectures: str = ""  # the same as CMake has them
    note: str = ""


def find_toolkit(cuda: str) -> Toolkit:
    """The toolkit for a torch that is built with `cuda`; SystemExit where TORCH_CUDA_ARCH_LIST cannot be met."""
    wanted = architectures()
    fitting = [each for each in wanted if (each.major, each.minor) >= LEAST]
    if not fitting:
        return Toolkit(note=f"{VARIABLE} has only {spelled(wanted)}, and the kernels need {spelled_least()} or later")
    if left_out := [each for each in wanted if each not in fitting]:
        announce(f"{VARIABLE} has {spelled(left_out)}; the kernels need {spelled_least()} or later and leave that out")
    nvcc, note = find_nvcc(cuda)
    if nvcc is None:
        return Toolkit(note=note)
    if complaint := trial(nvcc, fitting):
        note = f"nvcc at {nvcc} compiles nothing here: {complaint}"
        if os.environ.get(VARIABLE) and "architecture" in complaint:  # it was asked for by name
            raise SystemExit(f"demiurgic: {VARIABLE} is {os.environ[VARIABLE]!r}, but {note}")
        return Toolkit(note=note)
    in_cmake = ";".join(code for each in fitting for code in each.for_cmake())
    return Toolkit(str(nvcc), spelled(fitting), in_cmake)


# --- architectures --------------------------------------------------------------------------------


def architectures() -> list[Architecture]:
    """Those of TORCH_CUDA_ARCH_LIST, or the default ones; SystemExit for what is none."""
    text = os.environ.get(VARIABLE) or DEFAULT
    if text == "native":
        return native()
    spread = re.sub(r"[ ,]+", ";", text)
    for name, numbers in NAMED.items():
        spread = spread.replace(name, numbers)
    found = list(dict.fromkeys(parsed(name, text) for name in spread.split(";") if name))
    if not found:
        raise SystemExit(f"demiurgic: {VARIABLE} is {text!r}; unset it for {DEFAULT!r}.")
    return found


def parsed(name: str, text: str) -> Architecture:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
    if match is None:
        raise SystemExit(
            f"demiurgic: {VARIABLE} is {text!r}, and '{name}' of it is no architecture. It takes compute capabilities "
            f"such as '8.0;9.0+PTX', the names {', '.join(NAMED)}, or 'native'."
        )
    return Architecture(int(match[1]), int(match[2]), match[3], match[4] is not None)


def native() -> list[Architecture]:
    """Those of the GPUs in this machine; the driver knows, before any torch is imported."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    found = sorted({(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d)$", answer, re.M)})
    if not found:
        raise SystemExit(
            f"demiurgic: {VARIABLE} is 'native', but nvidia-smi names no GPU of this machine. Write compute "
            f"capabilities, such as {DEFAULT!r}."
        )
    return [Architecture(*each, ptx=each == found[-1]) for each in found]


def spelled(several: list[Architecture]) -> str:
    return ";".join(map(str, several))


def spelled_least() -> str:
    return "{}.{}".format(*LEAST)


# --- nvcc -----------------------------------------------------------------------------------------


def find_nvcc(cuda: str) -> tuple[Path | None, str]:
    """The first nvcc of torch's major version; a note where there is none."""
    wrong = []
    for nvcc in candidates(cuda):
        release = release_of(nvcc)
        if release.split(".")[0] == cuda.split(".")[0]:
            return nvcc, ""
        wrong.append(f"nvcc at {nvcc} is {f'of CUDA {release}' if release else 'not one that runs'}")
    if wrong:
        return None, f"{wrong[0]}, torch is built with CUDA {cuda}"
    return None, f"no nvcc of CUDA {cuda.split('.')[0]} found (looked in CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)"


def candidates(cuda: str) -> Iterator[Path]:
    """Where an nvcc may be, best first, each once; where CUDACXX names one, that one alone."""
    if named := os.environ.get("CUDACXX"):
        yield Path(shutil.which(named) or named)
        return
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    paths = [Path(home, "bin", "nvcc") for home in homes if home]
    paths += [Path(found)] if (found := shutil.which("nvcc")) else []
    major = cuda.split(".")[0]
    paths += [Path(root, "bin", "nvcc") for root in ("/usr/local/cuda", f"/usr/local/cuda-{major}")]
    paths += sorted(Path("/usr/local").glob(f"cuda-{major}.*/bin/nvcc"), reverse=True)
    yield from dict.fromkeys(path for path in paths if path.is_file())


def release_of(nvcc: Path) -> str:
    """Such as 13.0; "" for what is no nvcc."""
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    release = re.search(r"release (\d+\.\d+)", answer)
    return release[1] if release else ""


def trial(nvcc: Path, wanted: list[Architecture]) -> str | None:
    """What nvcc complains of when it compiles nothing for the architectures: its version of g++, mostly."""
    flags = [flag for each in wanted for flag in each.flags()]
    compiler = [f"-ccbin={host}"] if (host := os.environ.get("CUDAHOSTCXX")) else []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cu")
        source.write_text("__global__ void nothing() {}\n")
        command = [str(nvcc), "-std=c++20", *compiler, *flags, "-c", str(source), "-o", f"{source}.o"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    if run.returncode == 0:
        return None
    lines = [line.strip() for line in (run.stderr + run.stdout).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line or "fatal" in line), lines[0] if lines else "no message")


def announce(line: str) -> None:
    print(f"demiurgic: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    json.dump(asdict(find_toolkit(sys.argv[1])), sys.stdout)
