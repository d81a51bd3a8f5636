#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/decode_loop.h"

namespace demiurgic {

// How often each token stands in the context of a row, kept on the device: for the penalties of rows whose last tokens the
// host does not know yet. R rows, V tokens.
class TokenCounts {
public:
    TokenCounts() = default;  // of rows that need none

    // `sent` gets the memory that the copies to the device read (see move_together).
    TokenCounts(const std::vector<LoopRow>& rows, int64_t vocab, at::Device device, std::vector<at::Tensor>& sent);

    // One token more for each row, [R] int64.
    void add(const at::Tensor& tokens);

    // From now on the rows are these of them, int64 indices.
    void keep(const at::Tensor& rows);

    // Steps 2 to 4 of the order of sampling, on logits [R, V].
    at::Tensor penalise(const at::Tensor& logits) const;

private:
    // [2, R, V] float32: of all tokens, and of those that frequency_penalty and presence_penalty look at; undefined where no
    // row needs them
    at::Tensor counts_;
    at::Tensor repetition_, frequency_, presence_;  // [R, 1]
};

}  // namespace demiurgic
