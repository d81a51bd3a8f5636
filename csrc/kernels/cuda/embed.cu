#include <algorithm>

#include "kernels/cuda/launchers.h"

namespace demiurgic {

namespace {

// One block copies one row: 16 bytes a thread where both rows allow it, the rest (or all) element by element.
template <class Bits>
__global__ void embed_row(const int64_t* tokens, const Bits* table, int64_t table_stride, Bits* out, int64_t hidden) {
    const Bits* from = table + tokens[blockIdx.x] * table_stride;
    Bits* to = out + blockIdx.x * hidden;

    int64_t copied = 0;
    // A row's alignment depends on its index where 16 bytes do not divide the stride.
    if ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % sizeof(uint4) == 0) {
        constexpr int64_t per_vector = sizeof(uint4) / sizeof(Bits);
        for (int64_t i = threadIdx.x; i < hidden / per_vector; i += blockDim.x) {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
        }
        copied = hidden / per_vector * per_vector;
    }
    for (int64_t i = copied + threadIdx.x; i < hidden; i += blockDim.x) to[i] = from[i];
}

template <class Bits>
void launch(const int64_t* tokens, const void* table, int64_t table_stride, void* out, int64_t num_tokens,
            int64_t hidden, cudaStream_t stream) {
    const int64_t vectors = hidden * static_cast<int64_t>(sizeof(Bits)) / static_cast<int64_t>(sizeof(uint4));
    const auto threads = static_cast<unsigned>(std::clamp<int64_t>((vectors + 31) / 32 * 32, 32, 256));
    embed_row<Bits><<<static_cast<unsigned>(num_tokens), threads, 0, stream>>>(
        tokens, static_cast<const Bits*>(table), table_stride, static_cast<Bits*>(out), hidden);
}

}  // namespace

cudaError_t launch_embed(const int64_t* tokens, const void* table, int64_t table_stride, void* out, int64_t num_tokens,
                         int64_t hidden, int element_bytes, cudaStream_t stream) {
    if (num_tokens == 0) return cudaSuccess;  // an empty grid is a launch error
    if (element_bytes == 2) {
        launch<uint16_t>(tokens, table, table_stride, out, num_tokens, hidden, stream);
    } else if (element_bytes == 4) {
        launch<uint32_t>(tokens, table, table_stride, out, num_tokens, hidden, stream);
    } else {
        return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

}  // namespace demiurgic
