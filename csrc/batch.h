#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"
#include "scheduler.h"

namespace demiurgic {

// A sequence that gets a token from this step, or several.
struct SampledRow {
    Sequence* sequence;
    size_t first_position;  // of the first of these tokens in the sequence
    int64_t first_logits;   // which of the R rows of logits follows its last token; those of its drafts come after it
    std::vector<int64_t> drafts;  // that went through the decoder behind its last token
};

// One step laid out flat: the tokens of all sequences one after the other, without padding. N tokens, S sequences, R rows
// of logits: those of the G sequences that get a new token, one and one more for each draft; then T, one for each token that
// is scored.
struct Batch {
    // With `non_blocking` it may still be on its way to the device: `on_host` must be kept until something has waited.
    Batch(const std::vector<Work>& work, int64_t block_size, at::Device device, bool non_blocking = false);

    std::vector<BatchRow> rows;                     // S
    std::vector<SampledRow> sampled;                // G
    at::Tensor tokens;                              // [N] int64
    at::Tensor positions;                           // [N] int64
    at::Tensor slots;                               // [N] int64
    at::Tensor block_table;                         // [S, most blocks] int64
    at::Tensor logit_rows;                          // [R] int64, where in N the tokens stand whose logits are wanted
    bool all_logits = false;                        // those of all tokens are, in their order
    at::Tensor scored_tokens;                       // [T] int64
    at::Tensor on_host;                             // all of these, where they were copied from
    std::vector<std::vector<BlockRun>> block_runs;  // S: the blocks up to the last position of each row
    // Whose those are, in this order: positions from which the next token is scored.
    std::vector<std::pair<Sequence*, Sequence::Span>> scored;
};

}  // namespace demiurgic
