#pragma once

#include "kernels/kernels.h"

// The sampler's entries of the CPU's table: rows over the threads, each by the instruction set of Context::entries.
namespace demiurgic::cpu {

// Keeps its memory in Context::scratch.
void sample(Context& context, const SampleArgs& args);

void log_probability(Context& context, const LogProbabilityArgs& args);

}  // namespace demiurgic::cpu
