#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"
#include "scheduler.h"

namespace demiurgic {

// One step laid out flat: the tokens of all sequences one after the other, without padding. N tokens, S sequences, of
// which R get a new token.
struct Batch {
    Batch(const std::vector<Work>& work, int64_t block_size, at::Device device);

    std::vector<BatchRow> rows;      // S
    std::vector<Sequence*> sampled;  // R, the sequences that get a token
    at::Tensor tokens;               // [N] int64
    at::Tensor positions;            // [N] int64
    at::Tensor slots;                // [N] int64
    at::Tensor block_table;          // [S, most blocks] int64
    at::Tensor logit_rows;           // [R] int64, where in N the last tokens of `sampled` stand
};

}  // namespace demiurgic
