#include "token_edits.h"

#include <algorithm>

namespace demiurgic {

TokenEdits::TokenEdits(const GenerationConfig& config, const std::vector<int64_t>& prompt)
    : config_(config), prompt_length_(static_cast<int64_t>(prompt.size())) {
    for (const auto& [token, bias] : config_.logit_bias) edit_of(token).bias = static_cast<float>(bias);
    for (const int64_t token : config_.bad_token_ids) edit_of(token).bans |= for_good;
    if (end_is_forbidden(prompt_length_)) set_ends(true);
    for (int64_t position = 0; position < prompt_length_; ++position) see(prompt, position);
    ban_repeats(prompt);
}

void TokenEdits::append(const std::vector<int64_t>& tokens) {
    const int64_t num_tokens = static_cast<int64_t>(tokens.size());
    see(tokens, num_tokens - 1);
    ban_repeats(tokens);
    if (ends_forbidden_ && !end_is_forbidden(num_tokens)) set_ends(false);
}

void TokenEdits::see(const std::vector<int64_t>& tokens, int64_t position) {
    if (uses_penalties()) count(tokens, position);
    if (config_.no_repeat_ngram_size == 1) edit_of(tokens[position]).bans |= for_good;
    if (config_.no_repeat_ngram_size > 1) remember_ngram(tokens, position);
}

int64_t TokenEdits::index_of(int64_t token) {
    const auto [found, is_new] = index_.try_emplace(token, static_cast<int64_t>(edits_.size()));
    if (is_new) {
        edits_.push_back({token});
        counts_.emplace_back();
    }
    return found->second;
}

bool TokenEdits::uses_penalties() const {
    return config_.repetition_penalty != 1.0 || config_.frequency_penalty != 0.0 || config_.presence_penalty != 0.0;
}

void TokenEdits::count(const std::vector<int64_t>& tokens, int64_t position) {
    const int64_t index = index_of(tokens[position]);
    ++counts_[index].in_window;
    if (position >= prompt_length_ || config_.penalize_prompt) ++counts_[index].counted;
    penalize(index);
    if (!config_.repetition_context_size || position < *config_.repetition_context_size) return;
    const int64_t left = index_of(tokens[position - *config_.repetition_context_size]);
    --counts_[left].in_window;
    penalize(left);
}

void TokenEdits::penalize(int64_t index) {
    const Count& count = counts_[index];
    TokenEdit& edit = edits_[index];
    edit.repetition = count.in_window > 0 ? static_cast<float>(config_.repetition_penalty) : 1.0f;
    edit.frequency = static_cast<float>(config_.frequency_penalty) * static_cast<float>(count.counted);
    edit.presence = count.counted > 0 ? static_cast<float>(config_.presence_penalty) : 0.0f;
}

bool TokenEdits::end_is_forbidden(int64_t num_tokens) const {
    return num_tokens < config_.min_length || num_tokens - prompt_length_ < config_.min_new_tokens;
}

void TokenEdits::set_ends(bool forbidden) {
    ends_forbidden_ = forbidden;
    for (const Ids* ids : {&*config_.eos_token_id, &config_.stop_token_ids}) {
        for (const int64_t token : *ids) {
            uint8_t& bans = edit_of(token).bans;
            bans = static_cast<uint8_t>(forbidden ? bans | ends : bans & ~ends);
        }
    }
}

void TokenEdits::remember_ngram(const std::vector<int64_t>& tokens, int64_t position) {
    if (position < config_.no_repeat_ngram_size - 1) return;
    const auto [last, is_new] = last_follower_.try_emplace(hash_before(tokens, position), -1);
    followers_.push_back({position, index_of(tokens[position]), last->second});
    last->second = static_cast<int64_t>(followers_.size()) - 1;
}

void TokenEdits::ban_repeats(const std::vector<int64_t>& tokens) {
    for (const int64_t index : repeating_) edits_[index].bans &= static_cast<uint8_t>(~repeats_ngram);
    repeating_.clear();
    const int64_t run = config_.no_repeat_ngram_size - 1, num_tokens = static_cast<int64_t>(tokens.size());
    if (run < 1 || run > num_tokens) return;
    const auto last = last_follower_.find(hash_before(tokens, num_tokens));
    if (last == last_follower_.end()) return;
    for (int64_t i = last->second; i >= 0; i = followers_[i].previous) {
        const auto begin = tokens.begin() + (followers_[i].position - run);
        if (!std::equal(begin, begin + run, tokens.end() - run)) continue;  // another run of the same hash
        edits_[followers_[i].edit].bans |= repeats_ngram;
        repeating_.push_back(followers_[i].edit);
    }
}

// Of the n - 1 tokens before `position` (FNV-1a over whole tokens).
uint64_t TokenEdits::hash_before(const std::vector<int64_t>& tokens, int64_t position) const {
    uint64_t hash = 0xcbf29ce484222325;
    for (int64_t i = position - (config_.no_repeat_ngram_size - 1); i < position; ++i) {
        hash = (hash ^ static_cast<uint64_t>(tokens[i])) * 0x100000001b3;
    }
    return hash;
}

}  // namespace demiurgic
