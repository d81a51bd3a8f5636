#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/step_change.h"

// Small kernels around a captured step. Each launcher returns what the launch reported; it allocates and waits for nothing.
namespace demiurgic::cuda {

// Between two steps. Of one row no two changes may be the same thing to different ends: their order is free.
cudaError_t launch_changes(const StepState& state, const StepChanges& changes, cudaStream_t stream);

// Where the rotary angles of all positions are: [positions, half] float32 each. half: d / 2.
struct RotaryTable {
    const float* cos;
    const float* sin;
};

// cos[r] and sin[r] of the position of each row, [num_rows, half]; rows at rest get some too. `table` is in device memory.
cudaError_t launch_rotary(const RotaryTable* table, const int64_t* positions, int64_t num_rows, int64_t half,
                          float* cos, float* sin, cudaStream_t stream);

}  // namespace demiurgic::cuda
