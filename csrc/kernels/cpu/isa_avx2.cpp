// AVX2 with FMA and F16C.
#include <immintrin.h>

#include "kernels/cpu/isa.h"

namespace demiurgic::cpu::avx2 {

namespace {

#include "kernels/cpu/vec_avx2.h"

constexpr int kTileRows = 3;
constexpr int kTileWidths[] = {8, 4, 4, 3};  // of tiles of 1 to 4 rows: 16 registers
constexpr int kManyTileRows = 3;
constexpr int kLanesInFlight = 8;

#include "kernels/cpu/layers.h"

bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

extern const Isa isa;
const Isa isa = {"avx2", runs_here, entries<float>(), entries<BFloat16>(), entries<Float16>()};

}  // namespace demiurgic::cpu::avx2
