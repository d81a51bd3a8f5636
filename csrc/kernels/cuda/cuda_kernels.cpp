#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/decode_graph.h"
#include "kernels/cuda/device_code.h"
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

bool cuda_kernels_run_on(at::Device device) {
    if (!device.has_index()) return true;
    static std::mutex mutex;
    static std::map<c10::DeviceIndex, bool> known;
    const std::lock_guard lock(mutex);
    const auto [entry, is_new] = known.try_emplace(device.index());
    if (is_new) {
        const c10::cuda::CUDAGuard guard(device);
        entry->second = code_for_current_device() > 0;
    }
    return entry->second;
}

}  // namespace demiurgic
