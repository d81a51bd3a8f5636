#include "scorer.h"

#include <ATen/ops/empty.h>

namespace demiurgic {

std::vector<float> log_probabilities(const at::Tensor& logits, const at::Tensor& tokens, const Kernels& kernels) {
    at::Tensor logprob = at::empty({logits.size(0)}, logits.options());
    Context context{logits.device(), kernels.entries};
    kernels.log_probability(context, {logits, tokens, logprob});
    logprob = logprob.to(at::kCPU);
    const float* values = logprob.const_data_ptr<float>();
    return {values, values + logprob.numel()};
}

}  // namespace demiurgic
