#include "hooks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <map>

namespace demiurgic {

namespace {

using Sequences = std::vector<Sequence*>;
using Places = std::vector<int64_t>;  // in the round

// Without a copy where they follow each other.
at::Tensor rows_at(const at::Tensor& all, const Places& places) {
    bool consecutive = true;
    for (size_t i = 1; i < places.size(); ++i) consecutive &= places[i] == places[i - 1] + 1;
    if (consecutive) return all.narrow(0, places.front(), static_cast<int64_t>(places.size()));
    return all.index_select(0, at::tensor(places).to(all.device()));
}

Sequences sequences_at(const Sequences& all, const Places& places) {
    Sequences found;
    for (const int64_t place : places) found.push_back(all[place]);
    return found;
}

// Rows of one call; behind the tokens of each stands the one of `next`, where there is one for each.
HookRows show(const Hooks& hooks, const Sequences& sequences, const at::Tensor& scores, const Places& next) {
    const int64_t num_rows = static_cast<int64_t>(sequences.size()), added = next.empty() ? 0 : 1;
    int64_t most_generated = 0;
    for (const Sequence* sequence : sequences) most_generated = std::max(most_generated, sequence->num_generated());
    const int64_t width = hooks.prompt_width + most_generated + added;
    HookRows shown = {
        at::full({num_rows, width}, hooks.padding, at::kLong), scores, at::empty({num_rows}, at::kLong), {}};
    int64_t* end = shown.input_ids.data_ptr<int64_t>();
    for (int64_t i = 0; i < num_rows; ++i) {
        const std::vector<int64_t>& tokens = sequences[i]->tokens;
        end += width;
        if (added > 0) end[-1] = next[i];
        std::copy(tokens.begin(), tokens.end(), end - added - static_cast<int64_t>(tokens.size()));
        shown.rows.data_ptr<int64_t>()[i] = sequences[i]->row;
        shown.lengths.push_back(static_cast<int64_t>(tokens.size()) + added);
    }
    shown.input_ids = shown.input_ids.to(scores.device());
    shown.rows = shown.rows.to(scores.device());
    return shown;
}

// The rows of one call, at `places` of the round.
class HookedRows {
public:
    HookedRows(const Hooks& hooks, const Sequences& all, Places places)
        : hooks_(hooks), places_(std::move(places)), sequences_(sequences_at(all, places_)) {}

    void choose(Sampler& sampler, const at::Tensor& all_logits, Choices& choices) const {
        const at::Tensor logits = rows_at(all_logits, places_);
        at::Tensor scores = sampler.edited(logits, sequences_);
        if (hooks_.process) scores = hooks_.process(show(hooks_, sequences_, scores, {})).contiguous();
        const std::vector<Sample> samples = sampler.sample_edited(scores, logits, sequences_);
        if (hooks_.stop) ask(samples, scores, choices);
        for (size_t i = 0; i < places_.size(); ++i) choices.samples[places_[i]] = samples[i];
    }

    void fail(Choices& choices) const {
        for (const int64_t place : places_) choices.samples[place].token = kHookFailed;
        choices.failures.emplace_back(sequences_.front()->call, std::current_exception());
    }

private:
    // Which rows end with the token that they get; those that get none are not shown.
    void ask(const std::vector<Sample>& samples, const at::Tensor& scores, Choices& choices) const {
        Places shown, next;
        for (size_t i = 0; i < samples.size(); ++i) {
            if (samples[i].token < 0) continue;
            shown.push_back(static_cast<int64_t>(i));
            next.push_back(samples[i].token);
        }
        if (shown.empty()) return;
        const HookRows rows = show(hooks_, sequences_at(sequences_, shown), rows_at(scores, shown), next);
        const std::vector<bool> ended = hooks_.stop(rows);
        for (size_t i = 0; i < shown.size(); ++i) choices.ended[places_[shown[i]]] = ended.at(i);
    }

    const Hooks& hooks_;
    const Places places_;
    const Sequences sequences_;
};

void choose_hooked(const HookedRows& rows, Sampler& sampler, const at::Tensor& logits, Choices& choices) {
    try {
        rows.choose(sampler, logits, choices);
    } catch (const HookInterrupted& interrupted) {
        std::rethrow_exception(interrupted.cause);
    } catch (...) {
        rows.fail(choices);
    }
}

}  // namespace

Choices choose(Sampler& sampler, const at::Tensor& logits, const Sequences& sequences) {
    sampler.forget_reports();
    Choices choices;
    choices.ended.resize(sequences.size());
    if (std::none_of(sequences.begin(), sequences.end(), [](const Sequence* s) { return s->call->hooks != nullptr; })) {
        choices.samples = sampler.sample(logits, sequences);
        return choices;
    }
    choices.samples.resize(sequences.size());
    std::map<const Call*, Places> hooked;
    Places plain;
    for (size_t i = 0; i < sequences.size(); ++i) {
        const Call* call = sequences[i]->call;
        (call->hooks ? hooked[call] : plain).push_back(static_cast<int64_t>(i));
    }
    if (!plain.empty()) {
        const std::vector<Sample> samples = sampler.sample(rows_at(logits, plain), sequences_at(sequences, plain));
        for (size_t i = 0; i < plain.size(); ++i) choices.samples[plain[i]] = samples[i];
    }
    for (auto& [call, places] : hooked) {
        std::sort(places.begin(), places.end(),
                  [&](int64_t a, int64_t b) { return sequences[a]->row < sequences[b]->row; });
        choose_hooked(HookedRows(*call->hooks, sequences, std::move(places)), sampler, logits, choices);
    }
    return choices;
}

}  // namespace demiurgic
