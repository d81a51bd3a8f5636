#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// `base` with the entries that CUDA does faster in place of its own. Tensors that a kernel cannot take (another layout or
// dtype) go to the reference.
Kernels cuda_kernels(const Kernels& base);

// What the driver has free plus what torch's allocator holds unused.
int64_t free_cuda_bytes(at::Device device);

}  // namespace demiurgic
