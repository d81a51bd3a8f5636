#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// `reference` with the entries that CUDA does faster in place of its own, for weights of `dtype`; null where there are none.
const Kernels* cuda_kernels(at::ScalarType dtype, const Kernels& reference);

// Whether this build's kernels have code for `device`; true of a device without an index, which stands for any.
bool cuda_kernels_run_on(at::Device device);

}  // namespace demiurgic
