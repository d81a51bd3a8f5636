#pragma once

#include <ATen/core/Tensor.h>

#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "sampler.h"

namespace demiurgic {

// What a hook of a call is shown: R rows of the call, in the order of the result.
struct HookRows {
    at::Tensor input_ids;          // [R, T] int64, padded on the left; the last token of a row is in the last column
    at::Tensor scores;             // [R, V] float32, the hook's to change
    at::Tensor rows;               // [R] int64, their numbers in the result
    std::vector<int64_t> lengths;  // tokens of each row, padding not counted
};

// What a call's user wants to be asked at every position. It is called on whichever thread steps, without the engine's
// lock. What it throws ends its call, and nothing else; but see HookInterrupted.
struct Hooks {
    std::function<at::Tensor(const HookRows&)> process;      // logits [R, V] float32 in place of `scores`; empty: none
    std::function<std::vector<bool>(const HookRows&)> stop;  // which rows end, `scores` being processed; empty: none
    int64_t prompt_width = 0;                                // columns of the prompts in the result
    int64_t padding = 0;                                     // id
};

// Thrown by a hook that did not fail, but whose thread was interrupted. The step ends, as by a Poll, with `cause`.
struct HookInterrupted : std::exception {
    explicit HookInterrupted(std::exception_ptr cause) : cause(std::move(cause)) {}

    std::exception_ptr cause;
};

// What a round gives each of its sequences.
struct Choices {
    std::vector<Sample> samples;
    std::vector<bool> ended;                                     // by a stopping criterion, after this token
    std::vector<std::pair<Call*, std::exception_ptr>> failures;  // calls whose hook threw; their tokens are kHookFailed
};

// The next token of each sequence from its row of `logits` [R, V] float32, by its options and the hooks of its call. Reports
// are valid until the next call.
Choices choose(Sampler& sampler, const at::Tensor& logits, const std::vector<Sequence*>& sequences);

}  // namespace demiurgic
