#include "sequence.h"

#include <algorithm>
#include <limits>

namespace demiurgic {

const char* name_of(FinishReason reason) {
    switch (reason) {
        case FinishReason::none:
            return "none";
        case FinishReason::eos:
            return "eos";
        case FinishReason::stop:
            return "stop";
        case FinishReason::length:
            return "length";
        case FinishReason::error:
            return "error";
        case FinishReason::cancelled:
            return "cancelled";
    }
    return "none";
}

int64_t max_tokens_of(int64_t prompt_length, const GenerationConfig& config) {
    if (config.max_length) return *config.max_length;
    const int64_t most = std::numeric_limits<int64_t>::max() / 2 - prompt_length;
    return prompt_length + std::min(*config.max_new_tokens, most);
}

Sequence::Sequence(std::vector<int64_t> prompt, std::shared_ptr<const GenerationConfig> options, uint64_t row_seed)
    : tokens(std::move(prompt)),
      prompt_length(static_cast<int64_t>(tokens.size())),
      config(std::move(options)),
      seed(row_seed),
      max_tokens(max_tokens_of(prompt_length, *config)) {
    if (!uses_penalties()) return;
    for (int64_t position = 0; position < prompt_length; ++position) count(position, tokens[position]);
}

bool Sequence::uses_penalties() const {
    return config->repetition_penalty != 1.0 || config->frequency_penalty != 0.0 || config->presence_penalty != 0.0;
}

void Sequence::append(int64_t token) {
    tokens.push_back(token);
    if (uses_penalties()) count(size() - 1, token);
}

void Sequence::count(int64_t position, int64_t token) {
    TokenCount& entry = counts[token];
    ++entry.in_window;
    if (position >= prompt_length || config->penalize_prompt) ++entry.counted;
    if (config->repetition_context_size && position >= *config->repetition_context_size) {
        --counts[tokens[position - *config->repetition_context_size]].in_window;
    }
}

}  // namespace demiurgic
