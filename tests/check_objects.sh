#!/usr/bin/env bash
# Whether a build for x86-64 runs on machines without AVX: tests/check_objects.sh FOLDER, with the objects of the core.
#   isa_avx*.o, isa_amx.o  no weak symbol: of an inline function of a shared header the linker keeps one copy for all, and
#                          that may be the one with AVX-512; nothing that runs when the library is loaded; and whether the
#                          machine has the set is asked in plain instructions
#   all others             no AVX instruction
set -euo pipefail
avx=$'\t''(v[a-df-z]|tdp|tile)' # objdump's mnemonics: vaddps, vpxor, tdpbf16ps; not verr
problems=0
problem() { echo "$1" >&2; problems=$((problems + 1)); }

num_sets=0 num_others=0
while read -r object; do
    case $(basename "$object") in
        isa_avx*.o | isa_amx*.o)
            num_sets=$((num_sets + 1))
            # DW.ref: the address of the runtime's handler of exceptions, which is no code.
            weak=$(nm -C "$object" | grep -E '^[0-9a-f ]{16} [WVuv] ' | grep -v ' V DW\.ref\.' || true)
            [ -z "$weak" ] || problem "$object has weak symbols: $weak"
            objdump -h "$object" | grep -qE '\.(init_array|ctors)' && problem "$object runs code when it is loaded"
            asks=$(objdump -dC "$object" | sed -n '/runs_here()>:$/,/^$/p')
            [ -n "$asks" ] || problem "$object has no function runs_here"
            grep -E "$avx" <<<"$asks" && problem "runs_here in $object has AVX instructions"
            ;;
        *)
            num_others=$((num_others + 1))
            # -q would close the pipe, which counts as a failure of objdump.
            objdump -d "$object" | grep -E "$avx" | head -n 3 | grep . && problem "$object has AVX instructions"
            ;;
    esac
done < <(find "$1" -name '*.o')
((num_sets > 0 && num_others > 0)) || problem "$1 has no objects of the core"
echo "$num_sets instruction sets, $num_others other objects, $problems problems"
((problems == 0))
