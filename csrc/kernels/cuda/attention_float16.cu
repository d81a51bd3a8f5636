#include "kernels/cuda/attention.cuh"

namespace demiurgic::cuda {

cudaError_t attend_float16(const Attend& a, cudaStream_t stream, bool overlaps_previous) {
    return attention::attend<__half>(a, stream, overlaps_previous);
}

}  // namespace demiurgic::cuda
