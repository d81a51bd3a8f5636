#include "kernels/cuda/attention.cuh"

namespace demiurgic::cuda {

cudaError_t attend_float32(const Attend& a, cudaStream_t stream, bool overlaps_previous) {
    return attention::attend<float>(a, stream, overlaps_previous);
}

}  // namespace demiurgic::cuda
