#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// `base` with the entries that CUDA does faster in place of its own. Tensors that a kernel cannot take (another layout or
// dtype) go to the reference.
Kernels cuda_kernels(const Kernels& base);

// Whether this build's kernels have code for `device`; true of a device without an index, which stands for any.
bool cuda_kernels_run_on(at::Device device);

}  // namespace demiurgic
