"""The torch that is built against is the target environment's; another one at import is refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import demiurgic
from demiurgic import _build_info, build_check
from demiurgic.info import info

PROVIDER = Path(__file__).parents[1] / "build_support" / "torch_requirement.py"
PACKAGE = Path(demiurgic.__file__).parent


def loaded(file: Path):
    spec = spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[file.stem]


@pytest.fixture
def provider():
    yield from loaded(PROVIDER)


# --- finding the torch of the target --------------------------------------------------------------


def environment(folder: Path, version: str | None = None) -> Path:
    """A virtual environment, with a package that looks like a torch if `version` is given; its interpreter."""
    venv.create(folder, with_pip=False)
    if version:
        package = folder / sysconfig.get_path("purelib", vars={"base": "x"})[2:] / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('the search must not import torch')")
        (package / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    return folder / "bin" / "python"


def found_by(python: Path, **variables: str) -> dict[str, str]:
    """What the provider answers when `python` runs it."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    run = subprocess.run([python, PROVIDER], env=clean | variables, capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else {"version": None, "how": run.stderr}


def test_where_torch_is_found(tmp_path):
    site = tmp_path / "pip-build-env-x" / "site"  # pip's isolation
    site.mkdir(parents=True)
    site.joinpath("sitecustomize.py").write_text("import sys; sys.path = [p for p in sys.path if 'packages' not in p]")
    isolated = {"PYTHONPATH": str(site), "PYTHONNOUSERSITE": "1"}
    a, b, none = (
        environment(tmp_path / "a", "2.12.0"),
        environment(tmp_path / "b", "2.14.1"),
        environment(tmp_path / "n"),
    )
    build = environment(tmp_path / "build-env-1")  # as python -m build makes one
    uv = environment(tmp_path / "builds-v0" / ".tmp1")
    brought = environment(tmp_path / "build-env-2", "2.13.0")
    old, stray = environment(tmp_path / "old", "2.5.0"), environment(tmp_path / "stray")
    next(stray.parents[1].glob("lib/*/site-packages")).joinpath("torch").mkdir()
    cases = [
        # interpreter, its environment variables, version found, found how
        (a, {}, "2.12.0", f"importable by {a}"),
        (a, isolated, "2.12.0", f"the installing interpreter: {a}"),
        (a, {"DEMIURGIC_TORCH_PYTHON": str(b)}, "2.14.1", f"DEMIURGIC_TORCH_PYTHON={b}"),
        (a, {"DEMIURGIC_TORCH_PYTHON": str(none)}, None, "with a torch installed"),
        (a, {"DEMIURGIC_TORCH_PYTHON": "/nowhere/python"}, None, "with a torch installed"),
        (build, {"VIRTUAL_ENV": str(tmp_path / "a")}, "2.12.0", "VIRTUAL_ENV"),
        (build, {"VIRTUAL_ENV": str(tmp_path / "n"), "CONDA_PREFIX": str(tmp_path / "b")}, "2.14.1", "CONDA_PREFIX"),
        (uv, {"VIRTUAL_ENV": str(tmp_path / "builds-v0/.tmp1"), "PATH": f"{a.parent}:/bin"}, "2.12.0", "PATH"),
        (brought, {"VIRTUAL_ENV": str(tmp_path / "a")}, "2.13.0", "brought"),
        # pip and plain CMake install into their own interpreter: a torch elsewhere is not meant
        (none, isolated | {"VIRTUAL_ENV": str(tmp_path / "a"), "PATH": str(a.parent)}, None, "no torch found"),
        (none, {"VIRTUAL_ENV": str(tmp_path / "a"), "PATH": str(a.parent)}, None, "no torch found"),
        (stray, {}, None, "no torch found"),
        (old, {}, None, "torch 2.5.0 (importable by"),
    ]  # fmt: skip
    for python, variables, version, how in cases:
        found = found_by(python, **variables)
        assert (found["version"], how in found["how"]) == (version, True), (python, variables, found)


def test_an_interpreter_of_another_kind_is_passed_over(provider, tmp_path):
    other = tmp_path / "python"
    other.write_text("""#!/bin/sh\necho '{"abi": ["cpython", 2, 7, null], "origin": "/usr/lib/torch/__init__.py"}'\n""")
    other.chmod(0o755)
    assert provider.torch_of(provider.Candidate(other, "PATH")) is None


@pytest.mark.parametrize(
    ("command", "environ", "target"),
    [
        ("uv pip install --python a/bin/python .", {}, "a"),
        ("uv pip install -p a .", {"VIRTUAL_ENV": "{tmp}/b"}, "a"),
        ("uv pip install --python={tmp}/a/bin/python .", {}, "a"),
        ("uv pip install .", {"UV_PYTHON": "{tmp}/a"}, "a"),
        ("uv pip install .", {"VIRTUAL_ENV": "{tmp}/b"}, "b"),
        ("uv pip install .", {"CONDA_PREFIX": "{tmp}/b"}, "b"),
        ("uv pip install .", {}, ".venv"),
        ("uv sync", {"VIRTUAL_ENV": "{tmp}/b"}, ".venv"),
        ("uv sync", {"VIRTUAL_ENV": "{tmp}/b", "UV_PROJECT_ENVIRONMENT": "{tmp}/a"}, "a"),
    ],
)
def test_uv_target(provider, tmp_path, command, environ, target):
    for name in ("a", "b", ".venv"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    below = tmp_path / "below"
    argv = command.format(tmp=tmp_path).split()
    cwd = tmp_path if "a/bin/python" in argv or "a" in argv else below
    uv = provider.Process(argv, cwd, {k: v.format(tmp=tmp_path) for k, v in environ.items()})
    assert [candidate.python for candidate in provider.uv_target(uv)] == [tmp_path / target / "bin" / "python"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are read from /proc")
def test_ancestors_are_real(provider):
    parent = next(provider.ancestors())
    assert parent.argv and parent.cwd == Path(f"/proc/{os.getppid()}/cwd").resolve()
    code = "import torch_requirement as t; print(*next(t.ancestors()).argv)"
    run = [sys.executable, "-c", code]
    child = subprocess.run(run, cwd=PROVIDER.parent, capture_output=True, text=True, check=True)
    assert child.stdout.split() == " ".join(sys.orig_argv).split()


# --- the hooks ------------------------------------------------------------------------------------


def test_hooks(provider, monkeypatch):
    def torch_is(version):
        monkeypatch.setattr(
            provider, "find_torch", lambda: version and provider.Torch("/torch", version, None, 1, "here")
        )

    torch_is("2.12.1+cpu")
    assert provider.get_requires_for_dynamic_metadata({}) == []
    assert provider.dynamic_metadata({"dependencies": ["rich"]}, {}) == {"dependencies": ["rich", "torch==2.12.*"]}
    monkeypatch.delenv("DEMIURGIC_TORCH_FOUND")
    torch_is(None)
    assert provider.get_requires_for_dynamic_metadata({}) == ["torch==2.13.0"]
    with pytest.raises(SystemExit, match="no torch found"):
        provider.dynamic_metadata({"dependencies": []}, {})
    provider.build_state("sdist")
    assert provider.dynamic_metadata({"dependencies": []}, {}) == {"dependencies": ["torch>=2.11,<=2.15.99"]}
    monkeypatch.setattr(sys, "orig_argv", ["python", "_in_process.py", "get_requires_for_build_sdist"])
    assert provider.get_requires_for_dynamic_metadata({}) == []


def test_supported_versions(provider, capsys):
    for version, refused, warned in [
        ("2.10.0", True, False), ("2.11.0", False, False), ("2.15.3+cu130", False, False), ("2.16.0a0", False, True),
    ]:  # fmt: skip
        found = provider.Torch("/torch", version, None, 1, "here")
        if refused:
            with pytest.raises(SystemExit, match=r"torch 2.10.0 \(here\) is too old; torch 2.11 to 2.15"):
                provider.check_supported(found)
        else:
            provider.check_supported(found)
        assert ("newer than 2.15" in capsys.readouterr().err) == warned


# --- the CUDA toolkit -----------------------------------------------------------------------------


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """The module, on a machine that has no nvcc but those that a test makes."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    module = next(modules := loaded(PROVIDER.with_name("cuda_toolkit.py")))
    is_file, which = Path.is_file, module.shutil.which
    monkeypatch.setattr(Path, "is_file", lambda path: path.is_relative_to(tmp_path) and is_file(path))
    monkeypatch.setattr(
        module.shutil, "which", lambda name: next((p for p in [which(name)] if str(tmp_path) in str(p)), None)
    )
    yield module
    next(modules, None)


def nvcc_in(folder: Path, release: str, complaint: str = "") -> Path:
    """A program that tells its version as nvcc does, and compiles or complains; what it is called with is in .calls."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    fails = f"echo '{complaint}' >&2; exit 1" if complaint else "exit 0"
    nvcc.write_text(
        f'#!/bin/sh\necho "$@" >>{nvcc}.calls\n'
        f"[ \"$1\" = --version ] && echo 'Cuda compilation tools, release {release}, V{release}.1' && exit 0\n{fails}\n"
    )
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("text", "spelled", "in_cmake"),
    [
        (None, "8.0;9.0+PTX", "80-real;90-real;90-virtual"),
        ("", "8.0;9.0+PTX", "80-real;90-real;90-virtual"),
        ("9.0", "9.0", "90-real"),
        ("9.0+PTX", "9.0+PTX", "90-real;90-virtual"),
        ("8.0 9.0a", "8.0;9.0a", "80-real;90a-real"),
        ("8.6;8.6, 12.0+PTX", "8.6;12.0+PTX", "86-real;120-real;120-virtual"),
        ("Ampere;Hopper", "8.0;8.6+PTX;9.0+PTX", "80-real;86-real;86-virtual;90-real;90-virtual"),
        ("Ampere+Tegra", "8.7", "87-real"),
        ("7.0;7.5+PTX;8.0", "8.0", "80-real"),  # what the kernels cannot do is left out
    ],
)
def test_architectures_are_read_as_torch_does(toolkit, monkeypatch, tmp_path, text, spelled, in_cmake):
    nvcc = nvcc_in(tmp_path, "13.0")
    if text is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert toolkit.find_toolkit("13.0") == toolkit.Toolkit(str(nvcc), spelled, in_cmake)
    trial = Path(f"{nvcc}.calls").read_text().splitlines()[-1]
    assert trial.count("-gencode=") == len(in_cmake.split(";"))


@pytest.mark.parametrize("name", ["Turing", "Ampere", "Ada", "Hopper"])
def test_named_architectures_are_torchs(toolkit, name):
    source = (Path(torch.__file__).parent / "utils" / "cpp_extension.py").read_text(encoding="utf-8")
    assert f"('{name}', '{toolkit.NAMED[name]}')" in source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9", "'9' of it is no architecture. It takes compute capabilities such as '8.0;9.0\\+PTX', the names Kepler"),
        ("8.0;sm_90", "'sm_90' of it is no architecture"),
        (" ", "unset it for '8.0;9.0\\+PTX'"),
        ("native", "nvidia-smi names no GPU of this machine"),
    ],
)
def test_refused_architectures(toolkit, monkeypatch, tmp_path, text, message):
    nvcc_in(tmp_path, "13.0")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho no devices were found\n")
    smi.chmod(0o755)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    with pytest.raises(SystemExit, match=message):
        toolkit.find_toolkit("13.0")


def test_native_architectures_are_those_of_the_machine(toolkit, monkeypatch, tmp_path):
    nvcc_in(tmp_path, "13.0")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    assert toolkit.find_toolkit("13.0").architectures == "8.6;9.0+PTX"


def test_without_a_fitting_nvcc_a_note_says_why(toolkit, monkeypatch, tmp_path):
    def note():
        found = toolkit.find_toolkit("13.0")
        assert (found.nvcc == found.architectures == found.cmake_architectures == "") == bool(found.note)
        return found.note

    assert note() == "no nvcc of CUDA 13 found (looked in CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)"
    old = nvcc_in(tmp_path, "12.8")
    assert note() == f"nvcc at {old} is of CUDA 12.8, torch is built with CUDA 13.0"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert "is of CUDA 12.8" in note()  # a CUDA_HOME without nvcc
    fitting = nvcc_in(tmp_path / "elsewhere", "13.1")
    assert note() == "" and toolkit.find_toolkit("13.0").nvcc == str(fitting)  # passes over the one that does not fit
    monkeypatch.setenv("CUDACXX", str(old))
    assert note() == f"nvcc at {old} is of CUDA 12.8, torch is built with CUDA 13.0"  # what is named is meant
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    assert note() == "nvcc at /nowhere/nvcc is not one that runs, torch is built with CUDA 13.0"
    monkeypatch.delenv("CUDACXX")
    complaint = "host_config.h:157:2: error: #error -- unsupported GNU version!"
    nvcc_in(tmp_path / "elsewhere", "13.1", complaint)
    assert note() == f"nvcc at {fitting} compiles nothing here: {complaint}"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Turing")
    assert note() == "TORCH_CUDA_ARCH_LIST has only 7.5+PTX, and the kernels need 8.0 or later"


def test_an_architecture_that_nvcc_does_not_know_is_refused_where_it_was_asked_for(toolkit, monkeypatch, tmp_path):
    nvcc_in(tmp_path, "13.0", 'nvcc fatal   : Unsupported gpu architecture "compute_123"')
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "12.3")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST is '12.3', but nvcc at .*compute_123"):
        toolkit.find_toolkit("13.0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert "compute_123" in toolkit.find_toolkit("13.0").note


# --- the check at import --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built", "installed", "fits"),
    [
        (("2.13.0+cpu", None), ("2.13.0+cpu", None), True),
        (("2.13.0+cpu", None), ("2.13.1", None), True),
        (("2.13.0+cu130", "13.0"), ("2.13.0", "13.0"), True),
        (("2.13.0", None), ("2.14.0", None), False),
        (("2.13.0+cpu", None), ("2.13.0+cu130", "13.0"), False),
        (("2.13.0+cu130", "13.0"), ("2.13.0+cpu", None), False),
        (("2.13.0+cu126", "12.6"), ("2.13.0+cu130", "13.0"), False),
    ],
)
def test_mismatch(built, installed, fits):
    problem = build_check.mismatch(*built, *installed)
    assert fits if problem is None else built[0] in problem and installed[0] in problem and not fits


FAKE_TORCH = """
from types import SimpleNamespace as N
__version__ = "2.11.0"
version = N(cuda="12.8")
get_num_threads = lambda: 1
cuda = N(is_available=lambda: False)
backends = N(mps=cuda, cpu=N(get_cpu_capability=lambda: "DEFAULT"))
"""


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True)


def test_another_torch_is_refused_before_the_library_is_loaded(tmp_path):
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    refused = python("-c", "import demiurgic", path=tmp_path).stderr.splitlines()[-1]
    assert refused.startswith(f"ImportError: demiurgic: this build is for torch {torch.__version__}")
    assert "torch 2.11.0 (CUDA 12.8) is installed. Repair: " in refused and "install" in refused

    report = python("-m", "demiurgic.info", path=tmp_path)
    assert report.returncode == 1 and "2.11.0 (CUDA 12.8) is installed" in report.stdout and not report.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [("torch", r"torch is not installed for .* pip install \"torch=="), ("demiurgic._C", r"pip install -e \.")],
)
def test_missing_parts_are_named(missing, message):
    code = f"import sys; sys.modules[{missing!r}] = None; import demiurgic"
    assert re.search(f"ImportError: demiurgic: .*{message}", python("-c", code).stderr)


def test_repair_command_names_the_source():
    command = build_check.repair_command()
    assert re.match(r".* pip install .*(--force-reinstall|--reinstall-package)", command) and "--no-deps" in command


# --- what was built -------------------------------------------------------------------------------


def test_build_info_is_of_this_torch():
    assert (
        build_check.mismatch(_build_info.TORCH_VERSION, _build_info.TORCH_CUDA, torch.__version__, torch.version.cuda)
        is None
    )
    assert torch._C._GLIBCXX_USE_CXX11_ABI == _build_info.CXX11_ABI


def test_package_is_whole():
    for name in ("py.typed", "_C.pyi", "assets/tiny"):
        assert any(Path(folder, name).exists() for folder in demiurgic.__path__), name


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_the_library_looks_for_torch_beside_itself_and_nowhere_else():
    library = Path(demiurgic._C.__file__).read_bytes()
    assert b"$ORIGIN/../torch/lib\0" in library
    assert str(PROVIDER.parents[1]).encode() not in library  # no path of the machine that built it


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_one_openmp_runtime():
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"\S*lib[gi]omp\S*", maps))) <= 1


def test_info():
    facts = json.loads(json.dumps(info()))
    assert facts["problem"] is None and facts["versions"]["torch"] == torch.__version__
    assert facts["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert set(facts["kernels"]) >= set(facts["devices"]) and "attend" in facts["kernels"]["cpu"]
    report = python("-m", "demiurgic.info", "--json")
    assert report.returncode == 0 and json.loads(report.stdout)["build"] == facts["build"]
    lines = python("-m", "demiurgic.info").stdout.splitlines()
    assert any(re.match(rf"  torch +{re.escape(torch.__version__)}$", line) for line in lines)
    assert "kernels on cpu" in lines
