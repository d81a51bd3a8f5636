#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// The entries `sample`, `log_probability` and `checksum` of the reference table, in files of their own.
void reference_sample(Context&, const SampleArgs& args);
void reference_log_probability(Context&, const LogProbabilityArgs& args);
void reference_checksum(Context&, const ChecksumArgs& args);

// A copy of logits [R, V] float32 after steps 1 to 5 of the order of sampling, for those who look at it before the rest.
at::Tensor edited_copy(const at::Tensor& logits, const std::vector<SampleRow>& rows);

}  // namespace demiurgic
