#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/launchers.h"

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
    return table;
}

bool cuda_kernels_run_on(at::Device device) {
    if (!device.has_index()) return true;
    static std::mutex mutex;
    static std::map<c10::DeviceIndex, bool> known;
    const std::lock_guard lock(mutex);
    const auto [entry, is_new] = known.try_emplace(device.index());
    if (is_new) {
        const c10::cuda::CUDAGuard guard(device);
        entry->second = has_code_for_current_device();
    }
    return entry->second;
}

}  // namespace demiurgic
