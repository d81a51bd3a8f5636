#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/step_change.h"

// Returns what the launch reported; it allocates and waits for nothing.
namespace demiurgic::cuda {

// Between two steps. Of one row no two changes may be the same thing to different ends: their order is free.
cudaError_t launch_changes(const StepState& state, const StepChanges& changes, cudaStream_t stream);

}  // namespace demiurgic::cuda
