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
      edits(*config, tokens) {
    if (config->speculate == "ngram") lookup = std::make_unique<PromptLookup>(tokens);
}

void Sequence::append(int64_t token) {
    tokens.push_back(token);
    edits.append(tokens);
    if (lookup) lookup->append(tokens);
}

}  // namespace demiurgic
