#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// `cuda`, CUDA's table for weights of `dtype`, with products of many rows by cuBLASLt.
const Kernels& kernels_with_cublaslt(at::ScalarType dtype, const Kernels& cuda);

}  // namespace demiurgic
