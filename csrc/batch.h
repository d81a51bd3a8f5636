#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"
#include "scheduler.h"

namespace demiurgic {

// One step laid out flat: the tokens of all sequences one after the other, without padding. N tokens, S sequences, R rows
// of logits: one for each of the G sequences that get a new token, then one for each token that is scored.
struct Batch {
    Batch(const std::vector<Work>& work, int64_t block_size, at::Device device);

    std::vector<BatchRow> rows;      // S
    std::vector<Sequence*> sampled;  // G, the sequences that get a token
    at::Tensor tokens;               // [N] int64
    at::Tensor positions;            // [N] int64
    at::Tensor slots;                // [N] int64
    at::Tensor block_table;          // [S, most blocks] int64
    at::Tensor logit_rows;           // [R] int64, where in N the tokens stand whose logits are wanted
    at::Tensor scored_tokens;        // [R - G] int64, the tokens that are scored
    // Whose they are, in this order: positions from which the next token is scored.
    std::vector<std::pair<Sequence*, Sequence::Span>> scored;
};

}  // namespace demiurgic
