#!/usr/bin/env bash
# Builds and runs the tests of the core that need neither Python nor torch.
#   tests/cpp/run.sh native    every instruction set of this machine; the portable one also as an old machine runs it
#   tests/cpp/run.sh thread    with ThreadSanitizer
#   tests/cpp/run.sh address   with AddressSanitizer and UndefinedBehaviorSanitizer
#   tests/cpp/run.sh neon      cross-compiled for 64-bit Arm, run under qemu
# It needs cmake and a compiler; `neon` wants Debian's g++-aarch64-linux-gnu and qemu-user. BUILD: the folder to build in.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-native}
build=${BUILD:-build/tests-$mode}
jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

build() { # CMAKE_OPTIONS
    cmake -S tests/cpp -B "$build" "$@"
    cmake --build "$build" -j "$jobs"
}
run() { # CTEST_OPTIONS
    ctest "$@" --test-dir "$build" -j "$jobs" --verbose --no-tests=error
}

case $mode in
    native)
        build
        run
        if [ "$(uname -m)" = x86_64 ]; then
            tests/check_objects.sh "$build/CMakeFiles/kernels.dir"
            if command -v qemu-x86_64 >/dev/null; then
                qemu-x86_64 -cpu Nehalem "$build/kernels_test" every | tee "$build/nehalem"
                [ "$(grep ': tested$' "$build/nehalem")" = "portable: tested" ]
            else
                echo "qemu-x86_64 is not installed: not run as on a machine without AVX"
            fi
        fi
        ;;
    thread)
        build -DDEMIURGIC_SANITIZE=thread
        TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 run --exclude-regex kernels # the team's test runs the entries too
        ;;
    address)
        build -DDEMIURGIC_SANITIZE=address,undefined
        UBSAN_OPTIONS=print_stacktrace=1 run
        ;;
    neon)
        if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
            echo "NEON is untested: aarch64-linux-gnu-g++ or qemu-aarch64 is not installed" \
                "(Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"
            exit 0
        fi
        build -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
            "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
        run
        ;;
    *)
        echo "tests/cpp/run.sh knows native, thread, address and neon, not '$mode'" >&2
        exit 2
        ;;
esac
