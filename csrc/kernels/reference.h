#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// The entries `sample`, `log_probability` and `checksum` of the reference table, in files of their own.
void reference_sample(Context&, const SampleArgs& args);
void reference_log_probability(Context&, const LogProbabilityArgs& args);
void reference_checksum(Context&, const ChecksumArgs& args);

}  // namespace demiurgic
