#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// The entries `sample` and `log_probability` of the reference table, in a file of their own.
void reference_sample(Context&, const SampleArgs& args);
void reference_log_probability(Context&, const LogProbabilityArgs& args);

// A copy of logits [R, V] float32 after steps 1 to 5 of the order of sampling, for those who look at it before the rest.
at::Tensor edited_copy(const at::Tensor& logits, const std::vector<SampleRow>& rows);

}  // namespace demiurgic
