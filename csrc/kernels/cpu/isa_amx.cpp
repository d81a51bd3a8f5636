// AVX-512 with AMX tiles for bfloat16.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/isa.h"

namespace demiurgic::cpu::amx {

namespace {

#include "kernels/cpu/vec_avx512.h"

constexpr int kTileRows = 4;
constexpr int kTileWidths[] = {16, 8, 8, 6};  // of tiles of 1, 2, 3 and 4 rows: 32 registers
constexpr int kManyTileRows = 6;
constexpr int kLanesInFlight = 16;

#include "kernels/cpu/layers.h"
#include "kernels/cpu/products_amx.h"

// Linux gives the tiles' state to processes that ask for it.
bool system_allows_tiles() {
    constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}

bool runs_here() {
    unsigned eax = 7, ebx, ecx = 0, edx;  // leaf 7: bit 22 of edx is AMX-BF16, bit 24 AMX-TILE
    asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const bool has_tiles = (edx >> 22 & 1) && (edx >> 24 & 1);
    return has_tiles && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && system_allows_tiles();
}

}  // namespace

extern const Isa isa;
const Isa isa = {"amx", runs_here, entries<float>(), entries<BFloat16>(), entries<Float16>()};

}  // namespace demiurgic::cpu::amx
