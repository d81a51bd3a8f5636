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
      max_tokens(max_tokens_of(prompt_length, *config)),
      edits(*config, tokens) {}

Sequence::Span Sequence::unscored(int64_t start, int64_t end) const {
    if (!prompt_logprobs) return {start, 0};
    const int64_t first = std::max(start, static_cast<int64_t>(prompt_logprobs->size()));
    return {first, std::max<int64_t>(0, std::min(end, prompt_length - 1) - first)};
}

std::vector<float> Sequence::all_prompt_logprobs() const {
    const bool known = prompt_logprobs && static_cast<int64_t>(prompt_logprobs->size()) >= prompt_length - 1;
    return known ? *prompt_logprobs : std::vector<float>();
}

void Sequence::append(int64_t token) {
    tokens.push_back(token);
    edits.append(tokens);
}

}  // namespace demiurgic
