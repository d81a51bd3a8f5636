#!/usr/bin/env bash
# Installs Demiurgic in every way there is, each into a fresh environment, and looks whether it fits.
#   tests/matrix.sh frontends   pip, pip -e, --no-build-isolation, uv, build; with torch and without
#   tests/matrix.sh torches     torch 2.11 to 2.15 (downloads gigabytes where only CUDA builds are offered)
#   tests/matrix.sh pythons     Python 3.10 to 3.13, those that are found (downloads likewise)
# PYTHON=python3.11 and TORCH=2.13.0 choose what the front ends are tried with. Cases may be named: frontends uv-active.
set -uo pipefail
unset VIRTUAL_ENV CONDA_PREFIX PYTHONPATH
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
torch=${TORCH:-2.13.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}} # uv does not read pip's settings
export UV_CACHE_DIR=$work/uv-cache UV_LINK_MODE=copy

fresh() { "$python" -m venv "$work/$1"; } # an environment without torch

with_torch() { # the same with torch; made once, then linked, for torch is large
    if [ ! -d "$work/base" ]; then
        fresh base && "$work/base/bin/pip" install -q numpy "torch==$torch" || return
    fi
    fresh "$1" && cp -al "$work"/base/lib/python3*/site-packages/. "$work/$1"/lib/python3*/site-packages/ 2>/dev/null
    "$work/$1/bin/python" -c 'import torch' # the copy is whole
}

tools() { "$python" -m venv "$work/tools" && "$work/tools/bin/pip" install -q uv build; }

# fits ENVIRONMENT [TORCH]: imports, is built against the torch that is there, which is the one expected
fits() {
    (cd "$work" && "$work/$1/bin/python" - "${2:-$torch}" <<'PYTHON'
import sys
import demiurgic, torch
from demiurgic import _build_info
assert torch.__version__ == _build_info.TORCH_VERSION, (torch.__version__, _build_info.TORCH_VERSION)
assert torch.__version__.split("+")[0].startswith(sys.argv[1]), torch.__version__
PYTHON
    ) && "$work/$1/bin/python" -m demiurgic.info >/dev/null
}

pip-torch() { with_torch a && "$work/a/bin/pip" install "$repository" && fits a; }
pip-no-torch() { fresh a && "$work/a/bin/pip" install "$repository" && fits a 2.13; }
pip-editable() { with_torch a && "$work/a/bin/pip" install -e "$repository" && fits a; }
pip-no-isolation() {
    with_torch a && "$work/a/bin/pip" install -q 'scikit-build-core>=1.1,<2' cmake ninja &&
        "$work/a/bin/pip" install --no-build-isolation "$repository" && fits a
}
uv-active() {
    with_torch a && (. "$work/a/bin/activate" && cd "$work" && "$work/tools/bin/uv" pip install "$repository") && fits a
}
uv-python() { # a relative path, and another environment active
    with_torch a && fresh b &&
        (. "$work/b/bin/activate" && cd "$work" && "$work/tools/bin/uv" pip install --python a/bin/python "$repository") &&
        fits a
}
uv-dot-venv() {
    mkdir -p "$work/folder" && with_torch folder/.venv &&
        (cd "$work/folder" && "$work/tools/bin/uv" pip install "$repository") && fits folder/.venv
}
uv-no-torch() { fresh a && (cd "$work" && "$work/tools/bin/uv" pip install --python a "$repository") && fits a 2.13; }
build-active() { # sdist, then the wheel from it; the wheel goes into a second environment
    with_torch a && with_torch b && (. "$work/a/bin/activate" && "$work/tools/bin/python" -m build -o "$work/dist" "$repository") &&
        "$work/b/bin/pip" install "$work"/dist/*.whl && fits b
}
build-inactive() {
    with_torch a && "$work/a/bin/pip" install -q build && "$work/a/bin/python" -m build -w -o "$work/dist" "$repository" &&
        "$work/a/bin/pip" install "$work"/dist/*.whl && fits a
}
override() { # the environment named decides, not the one that builds
    with_torch a && with_torch b && rm -rf "$work"/b/lib/python3*/site-packages/torch &&
        DEMIURGIC_TORCH_PYTHON=$work/a/bin/python "$work/b/bin/pip" wheel --no-deps -w "$work/dist" "$repository" &&
        "$work/a/bin/pip" install "$work"/dist/*.whl && fits a
}

failures=0
run() { # run NAME COMMAND...: one line, the log only of a failure
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$work/log" 2>&1; then
        echo "ok      $name ($((SECONDS - start)) s)"
    else
        echo "FAILED  $name ($((SECONDS - start)) s)"
        tail -n 40 "$work/log"
        failures=$((failures + 1))
    fi
    rm -rf "$work"/{a,b,folder,dist}
}

what=${1:-}
shift || true
case $what in
frontends)
    tools || exit
    all=(pip-torch pip-no-torch pip-editable pip-no-isolation uv-active uv-python uv-dot-venv uv-no-torch build-active
        build-inactive override)
    for case in "${@:-${all[@]}}"; do run "$case" "$case"; done
    ;;
torches)
    for torch in ${*:-2.11.0 2.12.0 2.13.0 2.14.0 2.15.0}; do
        run "torch $torch" pip-torch
        rm -rf "$work/base"
    done
    ;;
pythons)
    for version in ${*:-3.10 3.11 3.12 3.13}; do
        python=$(command -v "python$version" || ls "$HOME/.pyenv/versions/$version".*/bin/python 2>/dev/null | tail -n 1)
        [ -n "$python" ] || { echo "skipped Python $version: not found"; continue; }
        run "Python $version" pip-torch
        rm -rf "$work/base"
    done
    ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
exit $((failures > 0))
