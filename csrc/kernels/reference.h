#pragma once

#include "kernels/kernels.h"
#include "kernels/token_counts.h"

namespace demiurgic {

// The entries `sample`, `log_probability` and `checksum` of the reference table, in files of their own.
void reference_sample(Context&, const SampleArgs& args);
void reference_log_probability(Context&, const LogProbabilityArgs& args);
void reference_checksum(Context&, const ChecksumArgs& args);

// The next tokens of R rows, on the device.
struct Drawn {
    at::Tensor token;                       // [R] int64, or a code of types.h
    at::Tensor logprob, processed_logprob;  // [R] float32; undefined where not wanted
    at::Tensor on_host;                     // read by a copy that nobody has waited for: see move_together
};

// What `sample` finds, without the host that waits for it, and without reports. `counts`: for the penalties of the rows, of
// which their edits say nothing.
Drawn draw_on_device(const at::Tensor& logits, const std::vector<SampleRow>& rows, bool want_logprobs,
                     const TokenCounts& counts);

// A copy of logits [R, V] float32 after steps 1 to 5 of the order of sampling, for those who look at it before the rest.
at::Tensor edited_copy(const at::Tensor& logits, const std::vector<SampleRow>& rows);

}  // namespace demiurgic
