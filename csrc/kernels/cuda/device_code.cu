#include "kernels/cuda/device_code.h"

#include <cuda_runtime_api.h>

namespace demiurgic {

namespace {

__global__ void nothing() {}

}  // namespace

int code_for_current_device() {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, nothing) == cudaSuccess) return attributes.ptxVersion;
    cudaGetLastError();  // or the next launch would be blamed for it
    return 0;
}

}  // namespace demiurgic
