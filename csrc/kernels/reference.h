#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// The entries `sample` and `log_probability` of the reference table, in a file of their own.
void reference_sample(Context&, const SampleArgs& args);
void reference_log_probability(Context&, const LogProbabilityArgs& args);

}  // namespace demiurgic
