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
        case FinishReason::repetition:
            return "repetition";
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
    if (!config->stop_on_repetition) return;
    const int64_t most_generated = std::max<int64_t>(max_tokens - prompt_length, 0);
    repetition =
        std::make_unique<RepetitionGuard>(*config->stop_on_repetition, config->repetition_min_tokens, most_generated);
}

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
    if (lookup) lookup->append(tokens);
    if (text) text->append(token);
    if (repetition) repetition->append(token);
}

void Sequence::keep(int64_t num_kept) {
    tokens.resize(prompt_length + num_kept);
    num_cached = std::min(num_cached, size());
    for (std::vector<float>* values : {&logprobs, &processed_logprobs}) {
        values->resize(std::min(values->size(), static_cast<size_t>(num_kept)));
    }
    for (Reports* reports : {&raw_reports, &processed_reports}) reports->keep(num_kept, config->top_logprobs);
}

int64_t Sequence::settled_tokens() const {
    if (finished()) return num_generated();
    const int64_t open_cycle = repetition && config->trim_repetition ? repetition->longest_run() : 0;
    const int64_t settled = num_generated() - open_cycle;
    return text ? std::min(settled, text->settled_tokens()) : settled;
}

int64_t Sequence::settled_bytes() const {
    if (!text) return 0;
    if (finished()) return static_cast<int64_t>(text->text().size());
    const bool cycle_is_cut = repetition && config->trim_repetition;
    return cycle_is_cut ? std::min(text->settled_bytes(), text->end_of(settled_tokens())) : text->settled_bytes();
}

}  // namespace demiurgic
