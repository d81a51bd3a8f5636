#pragma once

#include <cstdint>

namespace demiurgic::cpu {

// Bytes of the largest cache that this machine's processors share; 0 where the system does not say.
int64_t last_level_cache_bytes();

}  // namespace demiurgic::cpu
