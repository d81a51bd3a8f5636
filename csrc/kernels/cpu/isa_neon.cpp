// Armv8 Advanced SIMD: what every 64-bit Arm has.
#include <arm_neon.h>

#include "kernels/cpu/isa.h"

namespace demiurgic::cpu::neon {

namespace {

#include "kernels/cpu/vec_neon.h"

constexpr int kTileRows = 4;
constexpr int kTileWidths[] = {8, 8, 6, 4};  // of tiles of 1, 2, 3 and 4 rows: 32 registers
constexpr int kManyTileRows = 6;
constexpr int kLanesInFlight = 16;

#include "kernels/cpu/layers.h"

bool runs_here() { return true; }

}  // namespace

extern const Isa isa;
const Isa isa = {"neon", runs_here, entries<float>(), entries<BFloat16>(), entries<Float16>()};

}  // namespace demiurgic::cpu::neon
