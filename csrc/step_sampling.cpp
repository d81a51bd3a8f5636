#include "step_sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "kernels/arithmetic.h"

namespace demiurgic {

SampleRow sample_options(const GenerationConfig& config, int64_t vocab) {
    constexpr int64_t nucleus_unit = int64_t{1} << arithmetic::kNucleusBits;
    SampleRow row = {nullptr, 0, config.greedy(), 1.0f, vocab, nucleus_unit, false, 0.0f, 0};
    if (row.greedy) return row;
    row.temperature = static_cast<float>(config.temperature);
    row.typical = config.typical_p < 1.0;
    const double p = row.typical ? config.typical_p : config.top_p;
    row.nucleus = std::llround(p * static_cast<double>(nucleus_unit));
    if (config.top_k > 0) row.top_k = std::min(config.top_k, vocab);
    row.min_p = static_cast<float>(config.min_p);
    return row;
}

bool device_state_suffices(const GenerationConfig& config) {
    return !config.repetition_context_size && config.no_repeat_ngram_size == 0 && config.top_logprobs == 0 &&
           !config.entropy;
}

bool needs_counts(const GenerationConfig& config) {
    return config.repetition_penalty != 1.0 || config.frequency_penalty != 0.0 || config.presence_penalty != 0.0;
}

int64_t first_counted(const GenerationConfig& config, int64_t prompt_length) {
    return config.penalize_prompt ? 0 : prompt_length;
}

StepSampling step_sampling(const GenerationConfig& config, uint64_t seed, int64_t vocab, bool want_logprobs) {
    const SampleRow row = sample_options(config, vocab);
    StepSampling step = {};
    step.seed = seed;
    step.top_k = row.top_k;
    step.nucleus = row.nucleus;
    step.temperature = row.temperature;
    step.min_p = row.min_p;
    step.repetition = static_cast<float>(config.repetition_penalty);
    step.frequency = static_cast<float>(config.frequency_penalty);
    step.presence = static_cast<float>(config.presence_penalty);
    step.greedy = row.greedy;
    step.typical = row.typical;
    step.want_logprobs = want_logprobs;
    return step;
}

std::vector<StepEdit> step_edits(const GenerationConfig& config, int64_t prompt_length, int64_t vocab) {
    std::map<int64_t, StepEdit> edits;
    const auto edit_of = [&](int64_t token) -> StepEdit& {
        StepEdit& edit = edits[token];
        edit.token = static_cast<int32_t>(token);
        return edit;
    };
    for (const auto& [token, bias] : config.logit_bias) edit_of(token).bias = static_cast<float>(bias);
    const int64_t first_end = std::max<int64_t>(0, prompt_length + config.tokens_before_end(prompt_length));
    for (const Ids* ids : {&*config.eos_token_id, &config.stop_token_ids}) {
        for (const int64_t token : *ids) {
            edit_of(token).ends = true;
            edit_of(token).banned_before = first_end;
        }
    }
    for (const int64_t token : config.bad_token_ids) {
        edit_of(token).banned_before = std::numeric_limits<int64_t>::max();
    }
    std::vector<StepEdit> list;
    for (const auto& [token, edit] : edits) {
        if (token < vocab) list.push_back(edit);
    }
    return list;
}

}  // namespace demiurgic
