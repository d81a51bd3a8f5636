#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"

namespace demiurgic {

// The log-probability of each of `tokens` [R] by its row of `logits` [R, V] float32: the bits of the raw one that `sample`
// gives for that token. nan where the row's logits are no distribution: NaN, +inf, or all -inf.
std::vector<float> log_probabilities(const at::Tensor& logits, const at::Tensor& tokens, const Kernels& kernels);

}  // namespace demiurgic
