#include "draft_budget.h"

#include <algorithm>
#include <numeric>

namespace demiurgic {

void TypicalSeconds::saw(double seconds) {
    ++num_seen_;
    const double step = std::max(0.02, 0.3 / static_cast<double>(num_seen_));
    if (num_seen_ == 1) {
        value_ = seconds;
    } else if (seconds < value_) {
        value_ = std::max(seconds, value_ * (1 - step));
    } else {
        value_ = std::min(seconds, value_ * (1 + step));
    }
}

void StepCosts::measured(int64_t num_tokens, double seconds) {
    const double expected = of(num_tokens, num_tokens - 1);
    const auto [known, is_new] = seconds_.try_emplace(num_tokens);
    // The first of its kind may have waited for memory, or for another process.
    known->second.saw(is_new && expected > 0 ? std::min(seconds, 2 * expected) : seconds);
}

double StepCosts::within(int64_t num_tokens) const {
    const auto above = seconds_.lower_bound(num_tokens);
    if (above->first == num_tokens || above == seconds_.begin()) return above->second.value();
    const auto below = std::prev(above);
    const double share =
        static_cast<double>(num_tokens - below->first) / static_cast<double>(above->first - below->first);
    return below->second.value() + share * (above->second.value() - below->second.value());
}

double StepCosts::of(int64_t num_tokens, int64_t base) const {
    if (seconds_.empty()) return 0;
    if (num_tokens <= largest()) return within(num_tokens);
    const double at_largest = seconds_.rbegin()->second.value();
    if (base < largest()) {
        const double slope = std::max(0.0, at_largest - within(base)) / static_cast<double>(largest() - base);
        return at_largest + slope * static_cast<double>(num_tokens - largest());
    }
    // Nothing is known of more tokens than these. Few are limited by memory: another costs a tenth, until it is measured.
    const double at_base = at_largest * static_cast<double>(base) / static_cast<double>(largest());
    return at_base * (1 + std::min(0.1, 1.0 / static_cast<double>(base)) * static_cast<double>(num_tokens - base));
}

std::vector<DraftBudget::Draft> DraftBudget::likeliest_first(const std::vector<std::vector<double>>& chances) {
    std::vector<Draft> drafts;
    for (size_t row = 0; row < chances.size(); ++row) {
        int64_t depth = 0;
        for (const double chance : chances[row]) drafts.push_back({chance, ++depth, row});
    }
    // A row's drafts stay in order: its chances never rise.
    std::stable_sort(drafts.begin(), drafts.end(), [](const Draft& a, const Draft& b) { return a.chance > b.chance; });
    return drafts;
}

double DraftBudget::extra_seconds(int64_t num_drafts, int64_t depth, const Step& step, const StepCosts& costs) const {
    const double without = costs.of(step.num_tokens, step.num_tokens);
    const double with = costs.of(step.num_tokens + num_drafts, step.num_tokens);
    const double known = seconds_to_draw_.value(), to_draw = known > 0 ? known : 0.3 * without;  // first a guess
    return std::max(0.0, with - without) + (draws_ ? static_cast<double>(depth) * to_draw : 0.0);
}

// How many of the first `drafts` save most, of those that the credit covers; 0 where none do. An accepted one saves its row's
// share of a step.
size_t DraftBudget::most_profitable(const std::vector<Draft>& drafts, double credit, const Step& step,
                                    const StepCosts& costs) const {
    const double worth = costs.of(step.num_tokens, step.num_tokens) / static_cast<double>(step.num_rows);
    double accepted = 0, most = 0;
    int64_t depth = 0;
    size_t best = 0;
    for (size_t i = 0; i < drafts.size(); ++i) {
        accepted += drafts[i].chance;
        depth = std::max(depth, drafts[i].depth);
        const double cost = step.seconds_to_catch_up + extra_seconds(static_cast<int64_t>(i) + 1, depth, step, costs);
        const double profit = accepted * worth - kMargin * cost;
        if (profit > most && cost <= credit) most = profit, best = i + 1;
    }
    return best;
}

std::vector<int64_t> DraftBudget::lengths(const std::vector<std::vector<double>>& chances, const Step& step,
                                          const StepCosts& costs) const {
    std::vector<int64_t> lengths(chances.size(), 0);
    if (costs.largest() == 0) return lengths;  // first a step without drafts, to compare with
    const double credit = balance_ + kCredit * costs.of(step.num_tokens, step.num_tokens);
    std::vector<Draft> drafts = likeliest_first(chances);
    // Twice as many as have been tried: so a step can turn out dear, but not much dearer than thought.
    const int64_t tried = std::max<int64_t>(1, 2 * (costs.largest() - step.num_tokens));
    const int64_t most = std::min(tried, step.most_drafts);
    if (static_cast<int64_t>(drafts.size()) > most) drafts.resize(static_cast<size_t>(std::max<int64_t>(0, most)));
    if (drafts.empty()) return lengths;

    size_t count = most_profitable(drafts, credit, step, costs);
    // What is known may be out of date: a model's chances, or what a step costs. A trial is due once it is paid for.
    const bool may_be_worth_it = draws_ || drafts.front().chance >= 0.5;
    const double cost = step.seconds_to_catch_up + extra_seconds(1, 1, step, costs);
    if (count == 0 && may_be_worth_it && credit >= cost) count = 1;
    for (size_t i = 0; i < count; ++i) ++lengths[drafts[i].row];
    return lengths;
}

void DraftBudget::spent(const std::vector<int64_t>& lengths, int64_t num_accepted, double seconds, const Step& step,
                        const StepCosts& costs) {
    const double without = costs.of(step.num_tokens, step.num_tokens);
    balance_ += kAllowance * std::min(seconds, 2 * without);
    const int64_t num_drafts = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    if (num_drafts > 0) {
        const int64_t depth = *std::max_element(lengths.begin(), lengths.end());
        balance_ += static_cast<double>(num_accepted) * without / static_cast<double>(step.num_rows);
        balance_ -= extra_seconds(num_drafts, depth, step, costs);
    }
    balance_ = std::clamp(balance_, -8 * without, 16 * without);
}

void DraftBudget::drew(double seconds) { seconds_to_draw_.saw(seconds); }

}  // namespace demiurgic
