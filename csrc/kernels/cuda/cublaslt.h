#pragma once

#include <memory>

#include "kernels/cuda/product_library.h"

namespace demiurgic::cuda {

// NVIDIA's cuBLASLt, for the current device. Throws std::runtime_error where it does not start.
std::shared_ptr<ProductLibrary> make_cublaslt();

}  // namespace demiurgic::cuda
