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

    // A step that computed tokens of prompts.
    void measured_prompt(int64_t num_tokens, double seconds);

    // Between measured numbers a straight line; beyond them the slope above `base`, the step without drafts. 0 while
    // nothing is known.
    double of(int64_t num_tokens, int64_t base) const;

    // One more token, at most, as prompts have shown; 0: none has.
    double of_prompt_token() const { return of_prompt_token_.value(); }

    int64_t largest() const { return seconds_.empty() ? 0 : seconds_.rbegin()->first; }

private:
    double within(int64_t num_tokens) const;

    std::map<int64_t, TypicalSeconds> seconds_;
    TypicalSeconds of_prompt_token_;
};

// How many drafts a step takes along, so that speculation pays, and costs little where it does not. Drafts change no
// result, only how long it takes; so they may be chosen by the clock.
//
// What may be lost is earned first, as a share of the time that the rows have taken so far, with their prompts: so the loss
// stays within that share wherever they end. What drafts save is added to it.
class DraftBudget {
public:
    // Of the time of steps, what trials may cost where nothing is accepted.
    static constexpr double kAllowance = 0.01;
    // The same for drafts of a model, until the first trial: it has to read something before.
    static constexpr double kFirstAllowance = 0.02;
    // And in steps, at the beginning, for drafts that are looked up.
    static constexpr double kCredit = 0.5;
    // Drafts pay where they save so many times what they cost: chances and costs are estimates, and the best of several
    // estimates is one that flatters.
    static constexpr double kMargin = 1.2;
    // The chance of a draft of a model that nothing is known of.
    static constexpr double kHope = 0.7;
    // Tokens of a row from which a model guesses at first.
    static constexpr int64_t kGlance = 32;

    // A step before drafts: `num_tokens` tokens, of `num_rows` sequences that get a token each.
    struct Step {
        int64_t num_tokens;
        int64_t num_rows;
        int64_t most_drafts;
    };

    // A row that may bring drafts.
    struct Row {
        std::vector<double> chances;     // that its first draft comes, that the second does as well, and so on
        double seconds_to_catch_up = 0;  // to read what it has, before there can be any
        int64_t left = 0;                // most tokens that are still to come
    };

    // `relative_cost`: drafts are drawn from a model, whose step takes about so much of one without drafts; and whether they
    // are right shows only when they are verified. 0: they are looked up.
    explicit DraftBudget(double relative_cost) : relative_cost_(relative_cost) {}

    // Whether what may be spent covers a single draft; else `lengths` gives none.
    bool affords_one(const Step& step, const StepCosts& costs) const;

    // How many drafts each row should bring.
    std::vector<int64_t> lengths(const std::vector<Row>& rows, const Step& step, const StepCosts& costs) const;

    // The model has read the tokens [first, end) of a row; none where they are equal.
    struct Read {
        int64_t first, end;
    };
    // From which token on it is to read a row of `size` tokens with `left` to come, and about how long that takes beside a
    // draft. All of it only where that is paid for and little of what is to come: else the last few do, so that a trial is
    // cheap however long the prompt is.
    struct Reading {
        int64_t first;
        double seconds;
    };
    Reading reading(Read read, int64_t size, int64_t left, const Step& step, const StepCosts& costs) const;

    // A step of `seconds` is done in which the rows of the budget brought `lengths` drafts; `num_accepted` were accepted.
    void spent(const std::vector<int64_t>& lengths, int64_t num_accepted, double seconds, const Step& step,
               const StepCosts& costs);

    // A step of `seconds` is done in which there could be no drafts: it computed tokens of prompts.
    void earned(double seconds) { balance_ += allowance() * seconds; }

    // To draw one draft of every row took so long.
    void drew(double seconds);

    // To read so many tokens, and to draw one draft then, took so long.
    void read(int64_t num_tokens, double seconds);

private:
    struct Draft {
        double chance;
        int64_t depth;  // 1: its row's first
        size_t row;
    };

    bool draws() const { return relative_cost_ > 0; }
    double allowance() const { return draws() && !has_tried_ ? kFirstAllowance : kAllowance; }
    double credit(const Step& step, const StepCosts& costs) const;
    double seconds_to_draw(double without) const;
    double seconds_to_read(int64_t num_tokens, const Step& step, const StepCosts& costs) const;
    double extra_seconds(int64_t num_drafts, int64_t depth, const Step& step, const StepCosts& costs) const;
    static int64_t most_to_try(const Step& step, const StepCosts& costs);
    bool may_pay(const Row& row, int64_t num_rows, const Step& step, const StepCosts& costs) const;
    std::vector<Draft> likeliest_first(const std::vector<Row>& rows, const Step& step, const StepCosts& costs) const;
    struct Choice {
        std::vector<int64_t> lengths;
        double profit;  // seconds
    };
    Choice most_profitable(const std::vector<Draft>& drafts, const std::vector<Row>& rows, double credit,
                           const Step& step, const StepCosts& costs) const;

    const double relative_cost_;
    TypicalSeconds seconds_to_draw_;
    TypicalSeconds seconds_to_read_;  // a token
    bool has_tried_ = false;
    double last_without_ = 0;  // seconds of the last step, without its drafts
    double balance_ = 0;       // seconds that were saved, and allowed, less those that were spent
};

}  // namespace demiurgic
