#include "draft_budget.h"

#include <algorithm>
#include <iterator>
#include <limits>
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

// Of a few tokens the step itself would be most of it.
void StepCosts::measured_prompt(int64_t num_tokens, double seconds) {
    if (num_tokens >= 8) of_prompt_token_.saw(seconds / static_cast<double>(num_tokens));
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
    // Nothing is known of more tokens than these. Another costs no more than one of a prompt; before there was one: few are
    // limited by memory, so a tenth.
    const double at_base = at_largest * static_cast<double>(base) / static_cast<double>(largest());
    const double tenth = at_base * std::min(0.1, 1.0 / static_cast<double>(base));
    const double of_token = of_prompt_token() > 0 ? of_prompt_token() : tenth;
    return at_base + of_token * static_cast<double>(num_tokens - base);
}

double DraftBudget::seconds_to_draw(double without) const {
    if (!draws()) return 0;
    return seconds_to_draw_.value() > 0 ? seconds_to_draw_.value() : relative_cost_ * without;
}

double DraftBudget::extra_seconds(int64_t num_drafts, int64_t depth, const Step& step, const StepCosts& costs) const {
    const double without = costs.of(step.num_tokens, step.num_tokens);
    const double with = costs.of(step.num_tokens + num_drafts, step.num_tokens);
    return std::max(0.0, with - without) + static_cast<double>(depth) * seconds_to_draw(without);
}

double DraftBudget::seconds_to_read(int64_t num_tokens, const Step& step, const StepCosts& costs) const {
    constexpr double first = 1.5;   // when memory is touched for the first time
    if (num_tokens <= 2) return 0;  // that is part of a draft
    const double without = costs.of(step.num_tokens, step.num_tokens);
    const double of_token = costs.of_prompt_token() > 0 ? costs.of_prompt_token() : without;
    const double known = seconds_to_read_.value();
    return static_cast<double>(num_tokens) * (known > 0 ? known : first * relative_cost_ * of_token);
}

DraftBudget::Reading DraftBudget::reading(Read read, int64_t size, int64_t left, const Step& step,
                                          const StepCosts& costs) const {
    const double to_come =
        static_cast<double>(left) * costs.of(step.num_tokens, step.num_tokens) / static_cast<double>(step.num_rows);
    const double all = seconds_to_read(read.first == 0 ? size - read.end : size, step, costs);
    if (all <= to_come / 16 && all + extra_seconds(1, 1, step, costs) <= balance_) return {0, all};
    const bool goes_on = read.end > read.first && size - read.end <= kGlance;
    if (goes_on) return {read.first, seconds_to_read(size - read.end, step, costs)};
    const int64_t first = std::max<int64_t>(0, size - kGlance);
    return {first, seconds_to_read(size - first, step, costs)};
}

// Whether the rest of a row that is to be read first can save more than that costs, if drafts come as often as hoped.
bool DraftBudget::may_pay(const Row& row, int64_t num_rows, const Step& step, const StepCosts& costs) const {
    if (row.seconds_to_catch_up == 0) return true;
    const double worth = costs.of(step.num_tokens, step.num_tokens) / static_cast<double>(step.num_rows);
    const double cost_of_draft = extra_seconds(num_rows, 1, step, costs) / static_cast<double>(num_rows);
    const double saved = (kHope * worth - cost_of_draft) * static_cast<double>(row.left) / (1 + kHope);
    return saved > kMargin * (row.seconds_to_catch_up + extra_seconds(1, 1, step, costs));
}

std::vector<DraftBudget::Draft> DraftBudget::likeliest_first(const std::vector<Row>& rows, const Step& step,
                                                             const StepCosts& costs) const {
    std::vector<Draft> drafts;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (!may_pay(rows[i], static_cast<int64_t>(rows.size()), step, costs)) continue;
        int64_t depth = 0;
        for (const double chance : rows[i].chances) drafts.push_back({chance, ++depth, i});
    }
    // A row's drafts stay in order: its chances never rise.
    std::stable_sort(drafts.begin(), drafts.end(), [](const Draft& a, const Draft& b) { return a.chance > b.chance; });
    return drafts;
}

// Of `drafts`, the likeliest first, those that save most of what the credit covers; none where none save anything. An accepted
// one saves its row's share of a step. What it takes to catch up is paid once: may_pay weighs it.
DraftBudget::Choice DraftBudget::most_profitable(const std::vector<Draft>& drafts, const std::vector<Row>& rows,
                                                 double credit, const Step& step, const StepCosts& costs) const {
    const double worth = costs.of(step.num_tokens, step.num_tokens) / static_cast<double>(step.num_rows);
    Choice best{std::vector<int64_t>(rows.size(), 0), 0}, choice = best;
    double accepted = 0, to_catch_up = 0;
    int64_t depth = 0, count = 0;
    for (const Draft& draft : drafts) {
        accepted += draft.chance;
        depth = std::max(depth, draft.depth);
        choice.lengths[draft.row] = draft.depth;
        if (draft.depth == 1) to_catch_up += rows[draft.row].seconds_to_catch_up;
        const double cost = extra_seconds(++count, depth, step, costs);
        choice.profit = accepted * worth - kMargin * cost;
        if (choice.profit > best.profit && to_catch_up + cost <= credit) best = choice;
    }
    return best;
}

double DraftBudget::credit(const Step& step, const StepCosts& costs) const {
    return balance_ + (draws() ? 0 : kCredit * costs.of(step.num_tokens, step.num_tokens));
}

bool DraftBudget::affords_one(const Step& step, const StepCosts& costs) const {
    if (costs.largest() == 0) return false;  // first a step without drafts, to compare with
    return extra_seconds(1, 1, step, costs) <= credit(step, costs);
}

std::vector<int64_t> DraftBudget::lengths(const std::vector<Row>& rows, const Step& step,
                                          const StepCosts& costs) const {
    Choice best{std::vector<int64_t>(rows.size(), 0), 0};
    if (!affords_one(step, costs)) return best.lengths;
    const double credit = this->credit(step, costs);
    const std::vector<Draft> likeliest = likeliest_first(rows, step, costs);
    const int64_t most = std::min(most_to_try(step, costs), step.most_drafts);
    if (likeliest.empty() || most < 1) return best.lengths;

    bool pays = false;
    // A model draws one of each row at a time: whether it should go on is asked depth by depth.
    for (int64_t depth = draws() ? 1 : step.most_drafts;; ++depth) {
        std::vector<Draft> drafts;
        std::copy_if(likeliest.begin(), likeliest.end(), std::back_inserter(drafts),
                     [depth](const Draft& draft) { return draft.depth <= depth; });
        drafts.resize(static_cast<size_t>(std::min(most, static_cast<int64_t>(drafts.size()))));
        pays |= most_profitable(drafts, rows, std::numeric_limits<double>::infinity(), step, costs).profit > 0;
        const Choice choice = most_profitable(drafts, rows, credit, step, costs);
        if (choice.profit <= best.profit) break;
        best = choice;
    }
    // What is known may be out of date: a model's chances, or what a step costs. A trial is due once it is paid for; but where
    // several would pay together, to read their rows and to draw, that is waited for.
    const Draft& first = likeliest.front();
    const double cost = rows[first.row].seconds_to_catch_up + extra_seconds(1, 1, step, costs);
    if (!pays && (draws() || first.chance >= 0.5) && cost <= credit) best.lengths[first.row] = 1;
    return best.lengths;
}

// Twice as many as have been tried: so a step can turn out dear, but not much dearer than thought. Where prompts have shown
// what a token costs at most, one a row in any case: a few rows alone may not pay what it takes to draw.
int64_t DraftBudget::most_to_try(const Step& step, const StepCosts& costs) {
    return std::max(costs.of_prompt_token() > 0 ? step.num_rows : 1, 2 * (costs.largest() - step.num_tokens));
}

void DraftBudget::spent(const std::vector<int64_t>& lengths, int64_t num_accepted, double seconds, const Step& step,
                        const StepCosts& costs) {
    const double without = costs.of(step.num_tokens, step.num_tokens);
    balance_ += allowance() * std::min(seconds, 2 * without);
    const int64_t num_drafts = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    if (num_drafts > 0) {
        const int64_t depth = *std::max_element(lengths.begin(), lengths.end());
        balance_ += static_cast<double>(num_accepted) * without / static_cast<double>(step.num_rows);
        balance_ -= extra_seconds(num_drafts, depth, step, costs);
        has_tried_ = true;
    }
    balance_ = std::clamp(balance_, -8 * without, 16 * without);
    last_without_ = without;
}

void DraftBudget::drew(double seconds) { seconds_to_draw_.saw(seconds); }

void DraftBudget::read(int64_t num_tokens, double seconds) {
    const double to_read = std::max(seconds / 4, seconds - seconds_to_draw(last_without_));
    seconds_to_read_.saw(to_read / static_cast<double>(num_tokens));
    balance_ -= to_read;
    has_tried_ = true;
}

}  // namespace demiurgic
