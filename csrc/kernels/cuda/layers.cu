#include "kernels/cuda/layers.cuh"

namespace demiurgic::cuda {

// The operand of an entry's first product, and that of its second.
int64_t scratch_bytes(int64_t rows, int64_t widest, int64_t element_bytes) {
    return 2 * buffer_bytes(rows, widest, element_bytes);
}

// The library's own, and the sums of an entry: no more than three matrices', none of more outputs than some product has
// columns.
int64_t library_scratch_bytes(int64_t rows, int64_t widest) {
    if (rows <= kFewRows) return 0;
    return ProductLibrary::kWorkspaceBytes + buffer_bytes(rows, kMostFactors * widest, sizeof(float));
}

// One for each column of blocks, the smallest of which have four columns of tokens.
int64_t num_progress(int64_t rows) { return rows <= kTwoColumns ? 0 : blocks_of(rows, kMostColumns * kColumnTokens); }

}  // namespace demiurgic::cuda
