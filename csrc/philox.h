#pragma once

#include <cstdint>

namespace demiurgic {

// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
// Returns the first 64 of its 128 output bits. The same (key, counter, stream) gives the same bits on every machine,
// and on the device: nvcc takes constexpr functions for it too.
constexpr uint64_t philox(uint64_t key, uint64_t counter, uint64_t stream) {
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0;
        const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return uint64_t{c1} << 32 | c0;
}

// The 64 random bits that decide the token at `position` (index in its sequence, prompt included, padding not).
constexpr uint64_t token_bits(uint64_t seed, uint64_t position) { return philox(seed, position, 0); }

// The seed of the i-th of several rows that share one given seed; the first keeps it.
constexpr uint64_t derive_seed(uint64_t seed, uint64_t i) { return i == 0 ? seed : philox(seed, i, 1); }

}  // namespace demiurgic
