#include "kernels/cuda/attention.cuh"

namespace demiurgic::cuda {

cudaError_t attend_bfloat16(const Attend& a, cudaStream_t stream, bool overlaps_previous) {
    return attention::attend<__nv_bfloat16>(a, stream, overlaps_previous);
}

}  // namespace demiurgic::cuda
