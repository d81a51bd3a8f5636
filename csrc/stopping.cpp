#include "stopping.h"

#include <algorithm>

namespace demiurgic {

namespace {

bool contains(const Ids& ids, int64_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

}  // namespace

FinishReason reason_to_stop(const Sequence& sequence) {
    if (sequence.scored) {
        return sequence.num_cached == sequence.num_inputs() ? FinishReason::length : FinishReason::none;
    }
    if (sequence.num_generated() > 0) {
        const int64_t last = sequence.tokens.back();
        if (contains(*sequence.config->eos_token_id, last)) return FinishReason::eos;
        if (contains(sequence.config->stop_token_ids, last)) return FinishReason::stop;
    }
    return sequence.size() >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

bool end_is_forbidden(const Sequence& sequence) {
    return sequence.size() < sequence.config->min_length || sequence.num_generated() < sequence.config->min_new_tokens;
}

std::vector<int64_t> tokens_that_repeat_ngram(const Sequence& sequence) {
    const std::vector<int64_t>& tokens = sequence.tokens;
    const int64_t n = sequence.config->no_repeat_ngram_size, size = sequence.size();
    std::vector<int64_t> repeats;
    if (n > size) return repeats;
    const auto last = tokens.end() - (n - 1);  // the n - 1 tokens that the next one would complete
    for (int64_t start = 0; start + n <= size; ++start) {
        if (std::equal(last, tokens.end(), tokens.begin() + start)) repeats.push_back(tokens[start + n - 1]);
    }
    return repeats;
}

}  // namespace demiurgic
