#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace demiurgic {

// Near the median of the seconds seen lately, so that what the machine does beside now and then does not count.
class TypicalSeconds {
public:
    void saw(double seconds);
    double value() const { return value_; }  // 0: nothing was seen

private:
    double value_ = 0;
    int64_t num_seen_ = 0;
};

// Seconds of a step by the number of its tokens, as measured on this machine.
class StepCosts {
public:
    void measured(int64_t num_tokens, double seconds);

    // Between measured numbers a straight line; beyond them the slope above `base`, the step without drafts. 0 while
    // nothing is known.
    double of(int64_t num_tokens, int64_t base) const;

    int64_t largest() const { return seconds_.empty() ? 0 : seconds_.rbegin()->first; }

private:
    double within(int64_t num_tokens) const;

    std::map<int64_t, TypicalSeconds> seconds_;
};

// How many drafts a step takes along, so that speculation pays, and costs little where it does not. Drafts change no
// result, only how long it takes; so they may be chosen by the clock.
class DraftBudget {
public:
    // Of the time of steps, what trials may cost where nothing is accepted.
    static constexpr double kAllowance = 0.01;
    // And in steps, at the beginning.
    static constexpr double kCredit = 0.5;
    // Drafts pay where they save so many times what they cost: chances and costs are estimates, and the best of several
    // estimates is one that flatters.
    static constexpr double kMargin = 1.2;

    // A step before drafts: `num_tokens` tokens, of `num_rows` sequences that get a token each.
    struct Step {
        int64_t num_tokens;
        int64_t num_rows;
        int64_t most_drafts;
        double seconds_to_catch_up;  // with what has come since the last drafts, before there can be any
    };

    // `draws`: drafts are drawn from a model, which takes time, and whether they are right shows only when they are verified.
    explicit DraftBudget(bool draws) : draws_(draws) {}

    // How many drafts each row should bring. `chances`, for each row: that its first draft comes, that the second does as
    // well, and so on.
    std::vector<int64_t> lengths(const std::vector<std::vector<double>>& chances, const Step& step,
                                 const StepCosts& costs) const;

    // A step of `seconds` is done in which the rows of the budget brought `lengths` drafts; `num_accepted` were accepted.
    void spent(const std::vector<int64_t>& lengths, int64_t num_accepted, double seconds, const Step& step,
               const StepCosts& costs);

    // To draw one draft of every row took so long.
    void drew(double seconds);

    // To catch up took so long.
    void paid(double seconds) { balance_ -= seconds; }

private:
    struct Draft {
        double chance;
        int64_t depth;  // 1: its row's first
        size_t row;
    };

    static std::vector<Draft> likeliest_first(const std::vector<std::vector<double>>& chances);
    double extra_seconds(int64_t num_drafts, int64_t depth, const Step& step, const StepCosts& costs) const;
    size_t most_profitable(const std::vector<Draft>& drafts, double credit, const Step& step,
                           const StepCosts& costs) const;

    const bool draws_;
    TypicalSeconds seconds_to_draw_;
    double balance_ = 0;  // seconds that were saved, and allowed, less those that were spent
};

}  // namespace demiurgic
