#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/decode_graph.h"
#include "kernels/cuda/layer_kernels.h"
#include "kernels/cuda/sample_kernels.h"

namespace demiurgic {

namespace {

Kernels make_kernels(const Kernels& reference, at::ScalarType dtype) {
    Kernels table = reference;
    cuda::add_layer_kernels(table, dtype);
    table.attend = {cuda::attend, "cuda"};
    table.sample = {cuda::sample, "cuda"};
    table.log_probability = {cuda::log_probability, "cuda"};
    table.decode_loop = make_graph_loop;
    return table;
}

}  // namespace

const Kernels* cuda_kernels(at::ScalarType dtype, const Kernels& reference) {
    static const Kernels float32 = make_kernels(reference, at::kFloat);
    static const Kernels bfloat16 = make_kernels(reference, at::kBFloat16);
    static const Kernels float16 = make_kernels(reference, at::kHalf);
    return dtype == at::kFloat      ? &float32
           : dtype == at::kBFloat16 ? &bfloat16
           : dtype == at::kHalf     ? &float16
                                    : nullptr;
}

int64_t free_cuda_bytes(at::Device device) {
    const c10::cuda::CUDAGuard guard(device);
    size_t free = 0;
    size_t total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(guard.current_device().index());
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return static_cast<int64_t>(free) + stats.reserved_bytes[all].current - stats.allocated_bytes[all].current;
}

}  // namespace demiurgic
