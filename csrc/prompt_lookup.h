#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ngram_index.h"

namespace demiurgic {

// Drafts of one sequence from itself: what followed the last tokens where they stood before, in the prompt or in what was
// generated. It also learns how often such a draft is the token that comes. That costs nothing: whether the one for the next
// token was right shows at every step, computed or not.
class PromptLookup {
public:
    explicit PromptLookup(const std::vector<int64_t>& prompt) : index_(prompt) {}

    // `tokens` have got their last one.
    void append(const std::vector<int64_t>& tokens);

    // For each of at most `most` drafts the chance that it comes, and all before it. Empty where nothing can be drafted.
    std::vector<double> chances(int64_t most) const;

    // `count` drafts; only where chances has as many.
    std::vector<int64_t> drafts(const std::vector<int64_t>& tokens, int64_t count) const;

private:
    // By the length of the run before it: 2, 3, 4, 5 to 8, 9 to 16, more.
    static constexpr size_t kNumClasses = 6;
    static size_t class_of(int64_t length);

    NgramIndex index_;
    std::array<double, kNumClasses> right_ = {0.2, 0.3, 0.5, 0.6, 0.8, 0.9};  // moving means, begun with a guess
};

}  // namespace demiurgic
