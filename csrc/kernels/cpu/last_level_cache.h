#pragma once

#include <cstdint>

namespace demiurgic::cpu {

// Bytes of the first processor's cache of the highest level, which it may share with some of the others; 0 where the system
// does not say.
int64_t last_level_cache_bytes();

}  // namespace demiurgic::cpu
