#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Device code behind raw pointers: it knows no torch. Each launcher returns what the launch reported.
namespace demiurgic {

// out[n] = table[tokens[n]], for n < num_tokens. Elements are moved as bits, so any type of that size will do.
cudaError_t launch_embed(const int64_t* tokens,  // [num_tokens], all in the vocabulary
                         const void* table,      // [vocabulary, hidden], rows `table_stride` elements apart
                         int64_t table_stride,
                         void* out,  // [num_tokens, hidden], rows `hidden` elements apart
                         int64_t num_tokens, int64_t hidden,
                         int element_bytes,  // 2 or 4
                         cudaStream_t stream);

}  // namespace demiurgic
