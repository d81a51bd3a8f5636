#pragma once

#include <cstdint>

#include "kernels/cuda/step_state.h"

namespace demiurgic::cuda {

// A change to one row between two steps: it gets a cache block, or it is put to rest.
struct StepChange {
    int32_t row;
    int32_t index;  // of the block in its table; -1: it is put to rest
    int32_t block;
    int64_t limit;  // from now on
};

// As many as one launch takes: they travel as its parameters.
struct StepChanges {
    static constexpr int kMost = 128;
    StepChange list[kMost];
    int32_t count;
};

}  // namespace demiurgic::cuda
