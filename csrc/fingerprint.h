#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "weights.h"

namespace demiurgic {

// A number that stands for all values of all parameters, their names, dtypes and shapes, and the model's config. All weights
// are read once. Where a single number of them differs it is another one; where more do, the same by a chance of about
// 2^-64. Addresses and strides are not in it (Weights::same_layout): a file may be read elsewhere.
// Another table of kernels gives another number.
uint64_t fingerprint_of(const Weights& weights, const Kernels& kernels);

}  // namespace demiurgic
