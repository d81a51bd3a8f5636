#pragma once

#include <ATen/core/Tensor.h>

namespace demiurgic {

// at::empty for what every call makes anew, such as a layer's cache. On the host, up to 32 MiB of what is freed are kept for
// whoever asks next: new memory comes to a process page by page, which takes 3 to 10 % of a short call of a small model
// whenever malloc has given the old back to the system. (malloc keeps up to as much, depending on what else was freed.)
at::Tensor empty_of_kept_memory(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace demiurgic
