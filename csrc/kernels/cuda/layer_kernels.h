#pragma once

#include "kernels/kernels.h"

namespace demiurgic::cuda {

// Puts the entries that are products (embed, attention_in, attention_out, mlp, head) and their prepare into `table`, for
// weights of `dtype`: float32, bfloat16 or float16. They take rows of weights at any distance and address, of neighbouring
// elements; and activations as the decoder makes them, float32 and contiguous.
void add_layer_kernels(Kernels& table, at::ScalarType dtype);

}  // namespace demiurgic::cuda
