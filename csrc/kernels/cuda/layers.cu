#include "kernels/cuda/layers.cuh"

namespace demiurgic::cuda {

// The operand of an entry's first product, and that of its second.
int64_t scratch_bytes(int64_t rows, int64_t widest, int64_t element_bytes) {
    return 2 * buffer_bytes(rows, widest, element_bytes);
}

}  // namespace demiurgic::cuda
