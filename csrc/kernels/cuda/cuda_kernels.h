#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// `reference` with the entries that CUDA does faster in place of its own, for weights of `dtype`; null where there are none.
const Kernels* cuda_kernels(at::ScalarType dtype, const Kernels& reference);

// What the driver has free plus what torch's allocator holds unused.
int64_t free_cuda_bytes(at::Device device);

}  // namespace demiurgic
