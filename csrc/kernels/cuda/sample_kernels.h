#pragma once

#include "kernels/kernels.h"

// The sampler's entries of CUDA's table.
namespace demiurgic::cuda {

void sample(Context& context, const SampleArgs& args);

void log_probability(Context& context, const LogProbabilityArgs& args);

// Bytes of shared memory that a block may ask for: SamplerMemory::shared_bytes.
int64_t shared_bytes_of(at::Device device);

}  // namespace demiurgic::cuda
