#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace demiurgic {

// Moves `tensors` to `device`, all in one copy: a copy between the host and a device that works on its own waits until
// everything is done that was asked of the device before. From the host it need not be waited for: then nobody does, and what
// is returned must be kept until something else waits. Undefined tensors stay so; the others become contiguous.
at::Tensor move_together(const std::vector<at::Tensor*>& tensors, at::Device device, bool non_blocking = false);

}  // namespace demiurgic
