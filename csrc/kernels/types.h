#pragma once

#include <cstdint>

// Types of the kernels' interface that need no ATen.
namespace demiurgic {

enum class Activation { silu, gelu, relu };

// The tokens of one sequence in the flat batch.
struct BatchRow {
    int64_t first;           // index of its first token
    int64_t num_tokens;      // of this step
    int64_t context_length;  // positions it attends to, those of this step included
};

// The largest numbers of one step.
struct StepShape {
    int64_t num_tokens;
    int64_t context_length;
    int64_t widest;  // most columns of a product
    int64_t head_dim;
};

// What stands for a token where none can be chosen.
constexpr int64_t kNotFinite = -1;       // a logit is NaN or +inf
constexpr int64_t kNothingAllowed = -2;  // every token is at -inf
constexpr int64_t kOverflow = -3;        // penalties or temperature made the largest logit infinite

}  // namespace demiurgic
