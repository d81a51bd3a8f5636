// AVX-512 with vdpbf16ps for bfloat16.
#include <immintrin.h>

#include "kernels/cpu/isa.h"

namespace demiurgic::cpu::avx512_bf16 {

namespace {

#include "kernels/cpu/vec_avx512.h"

#define DEMIURGIC_BF16_DOT
constexpr int kTileRows = 4;
constexpr int kTileWidths[] = {8, 8, 8, 6, 5, 4, 3, 3};  // of tiles of 1 to 8 rows: 32 registers
constexpr int kManyTileRows = 6;
constexpr int kLanesInFlight = 16;

#include "kernels/cpu/layers.h"

bool runs_here() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const Isa isa;
const Isa isa = {"avx512_bf16", runs_here, entries<float>(), entries<BFloat16>(), entries<Float16>()};

}  // namespace demiurgic::cpu::avx512_bf16
