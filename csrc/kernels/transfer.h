#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

namespace demiurgic {

// These values as a tensor of the host; `dtype` is their type, or bool for uint8_t.
template <class T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType dtype) {
    at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(dtype));
    std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
    return tensor;
}

// Moves `tensors` to `device`, all in one copy: a copy between the host and a device that works on its own waits until
// everything is done that was asked of the device before. With `non_blocking` nobody waits: what is returned, which the copy
// reads, must be kept until something else has waited, and of the host's tensors nothing be read before. Undefined tensors
// stay so; the others become contiguous.
at::Tensor move_together(const std::vector<at::Tensor*>& tensors, at::Device device, bool non_blocking = false);

}  // namespace demiurgic
