#pragma once

#include "kernels/kernels.h"

// The checksum of the CPU's table: one pass over the memory, pieces over the threads.
namespace demiurgic::cpu {

void checksum(Context& context, const ChecksumArgs& args);

}  // namespace demiurgic::cpu
