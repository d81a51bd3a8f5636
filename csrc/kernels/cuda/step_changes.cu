#include "kernels/cuda/step_changes.h"

#include "kernels/cuda/device.cuh"

namespace demiurgic::cuda {

namespace {

__global__ void apply_changes(StepState state, StepChanges changes) {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= changes.count) return;
    const StepChange& change = changes.list[i];
    if (change.index < 0) {
        state.rows[change.row] = {change.row, 0, 0};
        state.slots[change.row] = -1;
        return;
    }
    // The step itself only reads these two.
    const_cast<int64_t*>(state.block_table)[change.row * state.most_blocks + change.index] = change.block;
    const_cast<int64_t*>(state.limits)[change.row] = change.limit;
}

__global__ void gather_rotary(const RotaryTable* table, const int64_t* positions, int64_t half, float* cos,
                              float* sin) {
    const int64_t row = blockIdx.x, from = positions[row] * half;
    for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
        cos[row * half + i] = table->cos[from + i];
        sin[row * half + i] = table->sin[from + i];
    }
}

}  // namespace

cudaError_t launch_changes(const StepState& state, const StepChanges& changes, cudaStream_t stream) {
    LaunchShape shape{dim3(1), dim3(StepChanges::kMost)};
    shape.stream = stream;
    return launch(shape, apply_changes, state, changes);
}

cudaError_t launch_rotary(const RotaryTable* table, const int64_t* positions, int64_t num_rows, int64_t half,
                          float* cos, float* sin, cudaStream_t stream) {
    LaunchShape shape{dim3(static_cast<unsigned>(num_rows)), dim3(64)};
    shape.stream = stream;
    return launch(shape, gather_rotary, table, positions, half, cos, sin);
}

}  // namespace demiurgic::cuda
