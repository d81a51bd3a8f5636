// Plain C++ for any CPU.
#include "kernels/cpu/isa.h"

namespace demiurgic::cpu::portable {

namespace {

#include "kernels/cpu/vec_portable.h"

constexpr int kTileRows = 2;
constexpr int kTileWidths[] = {4, 2};  // of tiles of 1 and 2 rows: 16 registers of 4 lanes
constexpr int kManyTileRows = 3;
constexpr int kLanesInFlight = 4;

#include "kernels/cpu/layers.h"

bool runs_here() { return true; }

}  // namespace

extern const Isa isa;
const Isa isa = {"portable", runs_here, entries<float>(), entries<BFloat16>(), entries<Float16>()};

}  // namespace demiurgic::cpu::portable
