#include "kernels/cuda/cublaslt_kernels.h"

#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

#include "kernels/cuda/cublaslt.h"

namespace demiurgic {

namespace {

std::shared_ptr<cuda::ProductLibrary> make_library(at::Device device) {
    const c10::cuda::CUDAGuard guard(device);
    return cuda::make_cublaslt();
}

Kernels with_cublaslt(const Kernels& cuda) {
    Kernels table = cuda;
    table.make_library = make_library;
    table.exact_rows = false;
    for (const char** name : {&table.attention_in.implementation, &table.attention_out.implementation,
                              &table.mlp.implementation, &table.head.implementation}) {
        *name = "cuda, cuBLASLt";
    }
    return table;
}

}  // namespace

const Kernels& kernels_with_cublaslt(at::ScalarType dtype, const Kernels& cuda) {
    static std::mutex mutex;
    static std::map<at::ScalarType, Kernels> tables;
    const std::lock_guard lock(mutex);
    const auto found = tables.find(dtype);
    return found != tables.end() ? found->second : tables.emplace(dtype, with_cublaslt(cuda)).first->second;
}

}  // namespace demiurgic
