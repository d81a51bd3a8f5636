#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/sample_kernels.h"

namespace demiurgic {

namespace {

void embed(Context& context, const EmbedArgs& args) {
    const auto& [tokens, table, out] = args;
    const auto element_bytes = static_cast<int>(table.element_size());
    const bool rows_of_bits = (element_bytes == 2 || element_bytes == 4) && table.stride(1) == 1;
    if (!rows_of_bits || !tokens.is_contiguous() || !out.is_contiguous() || out.scalar_type() != table.scalar_type()) {
        reference_kernels().embed(context, args);
        return;
    }
    const c10::cuda::CUDAGuard guard(context.device);
    C10_CUDA_CHECK(launch_embed(tokens.const_data_ptr<int64_t>(), table.const_data_ptr(), table.stride(0),
                                out.mutable_data_ptr(), tokens.numel(), table.size(1), element_bytes,
                                c10::cuda::getCurrentCUDAStream(context.device.index())));
}

}  // namespace

Kernels cuda_kernels(const Kernels& base) {
    Kernels table = base;
    table.embed = {embed, "cuda"};
    table.attend = {cuda::attend, "cuda"};
    table.sample = {cuda::sample, "cuda"};
    table.log_probability = {cuda::log_probability, "cuda"};
    return table;
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
