#include "kernels/transfer.h"

#include <ATen/ops/cat.h>

#include <algorithm>

namespace demiurgic {

at::Tensor move_together(const std::vector<at::Tensor*>& tensors, at::Device device, bool non_blocking) {
    std::vector<at::Tensor*> moved;
    for (at::Tensor* tensor : tensors) {
        if (tensor->defined()) moved.push_back(tensor);
    }
    if (moved.empty()) return {};
    // The widest elements first: each tensor begins at a multiple of the size of its own.
    std::stable_sort(moved.begin(), moved.end(),
                     [](const auto* a, const auto* b) { return a->element_size() > b->element_size(); });
    std::vector<at::Tensor> bytes;
    for (const at::Tensor* tensor : moved) bytes.push_back(tensor->contiguous().view({-1}).view(at::kByte));
    const at::Tensor packed = at::cat(bytes), there = packed.to(device, non_blocking);
    int64_t first = 0;
    for (size_t i = 0; i < moved.size(); ++i) {
        const int64_t count = bytes[i].numel();
        *moved[i] = there.narrow(0, first, count).view(moved[i]->scalar_type()).view(moved[i]->sizes());
        first += count;
    }
    return packed;
}

}  // namespace demiurgic
