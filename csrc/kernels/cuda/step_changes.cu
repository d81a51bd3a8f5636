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

}  // namespace

cudaError_t launch_changes(const StepState& state, const StepChanges& changes, cudaStream_t stream) {
    LaunchShape shape{dim3(1), dim3(StepChanges::kMost)};
    shape.stream = stream;
    return launch(shape, apply_changes, state, changes);
}

}  // namespace demiurgic::cuda
