// Where drafts are looked up, and how many of them a step brings.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "draft_budget.h"
#include "philox.h"
#include "prompt_lookup.h"

namespace demiurgic::test {

namespace {

// Numbers from a seed.
struct Dice {
    uint64_t seed;
    uint64_t count = 0;

    int64_t below(int64_t end) { return static_cast<int64_t>(token_bits(seed, count++) % static_cast<uint64_t>(end)); }
    bool falls(double chance) { return static_cast<double>(token_bits(seed, count++)) < chance * std::pow(2.0, 64); }
};

// The place, by looking at all of them: the longest run, the most recent of those.
NgramIndex::Match longest_by_hand(const std::vector<int64_t>& tokens) {
    NgramIndex::Match best;
    const int64_t size = static_cast<int64_t>(tokens.size());
    for (int64_t end = size - 1; end >= 1; --end) {
        int64_t length = 0;
        while (length < end && tokens[end - 1 - length] == tokens[size - 1 - length]) ++length;
        if (length >= 2 && length > best.length) best = {end, length};
    }
    return best;
}

// Of short texts no candidate is left out, so the index finds what all places give.
void the_longest_and_most_recent_run_is_found() {
    int64_t num_found = 0;
    for (uint64_t seed = 0; seed < 300; ++seed) {
        Dice dice{seed};
        const int64_t vocab = 4 + dice.below(8), prompt = 1 + dice.below(8);
        std::vector<int64_t> tokens;
        for (int64_t i = 0; i < prompt; ++i) tokens.push_back(dice.below(vocab));
        NgramIndex index(tokens);
        for (int64_t i = 0; i < 32; ++i) {
            tokens.push_back(dice.below(vocab));
            index.append(tokens);
            const NgramIndex::Match expected = longest_by_hand(tokens), match = index.match();
            check(match.length == expected.length,
                  "the run has " + std::to_string(match.length) + " tokens, not " + std::to_string(expected.length));
            // A run that has gone on may not be the most recent any more, but is one of the longest.
            for (int64_t j = 1; j <= match.length; ++j) {
                check(tokens[match.next - j] == tokens[tokens.size() - j], "the run stands there");
            }
            num_found += match.length > 0;
        }
    }
    check(num_found > 1000, "runs come again");
}

void a_cycle_is_drafted_past_its_end() {
    const std::vector<int64_t> tokens = {9, 1, 2, 3, 1, 2, 3, 1};
    const PromptLookup lookup(tokens);
    check(lookup.drafts(tokens, 8) == std::vector<int64_t>{2, 3, 1, 2, 3, 1, 2, 3}, "the cycle goes on");
    check(lookup.chances(8).size() == 8, "each has a chance");
    check(PromptLookup({1, 2, 3, 4, 5}).chances(8).empty(), "nothing stands twice");
}

void chances_follow_what_comes() {
    const std::vector<int64_t> prompt = {1, 2, 3, 4, 5, 1, 2};
    std::vector<int64_t> right = prompt, wrong = prompt;
    PromptLookup kept(prompt), broken(prompt);
    for (int64_t i = 0; i < 60; ++i) {
        right.push_back(1 + (right.back() % 5));
        kept.append(right);
        wrong.insert(wrong.end(), {100 + i, 1, 2});
        const std::vector<int64_t> first(wrong.begin(), wrong.end() - 2), second(wrong.begin(), wrong.end() - 1);
        broken.append(first), broken.append(second), broken.append(wrong);
    }
    check(kept.chances(1).front() > 0.95, "what always came is likely");
    check(broken.chances(1).front() < 0.05, "what never came is not");
}

// A machine whose step of n tokens takes `seconds_of(n)`, and drafts that each come with a chance, if those before do.
struct Machine {
    double slope;    // of a step, for another token
    double draws;    // what the same step of the draft model takes, of one; 0: drafts are looked up
    double chance;   // that a draft comes
    double guessed;  // what the row's chances say
    int64_t num_rows = 1;
    int64_t prompt = 0;       // tokens of each row; all in one step
    double supposed = draws;  // of `draws`, before a draft was drawn

    double seconds_of(int64_t num_tokens) const { return 1 + slope * static_cast<double>(num_tokens - num_rows); }

    struct Outcome {
        double seconds = 0, seconds_without = 0;  // without: for as many tokens of each row
        int64_t num_tokens = 0, num_drafts = 0;
        int64_t first_read = 0;  // of the first row, when it was read last
    };

    // What is known of one row.
    struct Row {
        int64_t size;
        double belief;
        DraftBudget::Read read = {0, 0};
    };

    struct Run {
        const Machine& machine;
        const int64_t most_drafts;
        Dice dice{7};
        StepCosts costs = {};
        DraftBudget budget{machine.supposed};
        std::vector<Row> rows =
            std::vector(static_cast<size_t>(machine.num_rows), Row{machine.prompt, machine.guessed});
        Outcome outcome = {};

        void compute_prompt();
        void step(int64_t end);
        double draw(const std::vector<int64_t>& lengths, const std::vector<DraftBudget::Reading>& readings);
        int64_t accept(Row& row, int64_t num_drafts);
    };

    // Until the rows have `num_new` tokens each, on average; they might have had `most_new`.
    Outcome run(int64_t num_new, int64_t most_new, int64_t most_drafts = 16) const {
        Run run{*this, most_drafts};
        run.compute_prompt();
        while (run.outcome.num_tokens < num_new * num_rows) run.step(prompt + most_new);
        Outcome outcome = run.outcome;
        outcome.first_read = run.rows.front().read.first;
        outcome.seconds_without = static_cast<double>(outcome.num_tokens) / static_cast<double>(num_rows) +
                                  (prompt > 0 ? seconds_of(prompt * num_rows) - 1 : 0);
        return outcome;
    }
};

void Machine::Run::compute_prompt() {
    if (machine.prompt == 0) return;
    const int64_t num_tokens = machine.prompt * machine.num_rows;
    const double seconds = machine.seconds_of(num_tokens);
    costs.measured_prompt(num_tokens, seconds);
    budget.earned(seconds);
    outcome.seconds += seconds;
    outcome.num_tokens += machine.num_rows;
    for (Row& row : rows) ++row.size;
}

void Machine::Run::step(int64_t end) {
    const DraftBudget::Step step{machine.num_rows, machine.num_rows, 128};
    std::vector<DraftBudget::Row> wanted;
    std::vector<DraftBudget::Reading> readings;
    for (const Row& row : rows) {
        const int64_t left = std::max<int64_t>(1, end - row.size);
        const DraftBudget::Reading all{0, 0};
        readings.push_back(machine.draws > 0 ? budget.reading(row.read, row.size, left, step, costs) : all);
        wanted.push_back({{}, readings.back().seconds, left});
        double chance = 1;
        for (int64_t k = 1; k <= std::min(most_drafts, left - 1); ++k) {
            wanted.back().chances.push_back(chance *= row.belief);
        }
    }
    const std::vector<int64_t> lengths = budget.lengths(wanted, step, costs);
    int64_t num_drafts = 0, num_accepted = 0;
    const double to_draw = draw(lengths, readings);
    for (size_t i = 0; i < rows.size(); ++i) num_drafts += lengths[i], num_accepted += accept(rows[i], lengths[i]);
    const double seconds = machine.seconds_of(machine.num_rows + num_drafts);
    costs.measured(machine.num_rows + num_drafts, seconds);
    budget.spent(lengths, num_accepted, to_draw + seconds, step, costs);
    outcome.seconds += to_draw + seconds;
    outcome.num_tokens += machine.num_rows + num_accepted;
    outcome.num_drafts += num_drafts;
}

// What it takes; the first draft of each row comes from the step that reads it.
double Machine::Run::draw(const std::vector<int64_t>& lengths, const std::vector<DraftBudget::Reading>& readings) {
    const int64_t depth = *std::max_element(lengths.begin(), lengths.end());
    if (machine.draws == 0 || depth == 0) return 0;
    int64_t num_unread = 0, num_drafting = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (lengths[i] == 0) continue;
        Row& row = rows[i];
        const int64_t first = readings[i].first;
        num_unread += row.size - (row.read.first == first ? std::max(row.read.end, first) : first);
        row.read = {first, row.size};
        ++num_drafting;
    }
    double seconds = 0;
    for (int64_t k = 0; k < depth; ++k) {
        const int64_t num_tokens = k == 0 ? num_unread : num_drafting;
        const double taken = machine.draws * (1 + machine.slope * static_cast<double>(num_tokens - 1));
        if (num_tokens <= 2 * num_drafting) {
            budget.drew(taken);
        } else {
            budget.read(num_tokens, taken);
        }
        seconds += taken;
    }
    return seconds;
}

int64_t Machine::Run::accept(Row& row, int64_t num_drafts) {
    int64_t num_accepted = 0;
    for (int64_t k = 0; k < num_drafts; ++k) {
        const bool came = dice.falls(machine.chance);
        if (machine.draws > 0) row.belief += ((came ? 1.0 : 0.0) - row.belief) / 8;
        if (!came) break;
        ++num_accepted;
    }
    row.size += 1 + num_accepted;
    return num_accepted;
}

void what_is_looked_up_and_never_accepted_costs_little() {
    for (const double slope : {0.0, 0.05, 0.3, 1.0}) {
        for (const double guessed : {0.3, 0.7, 0.95}) {
            for (const int64_t num_rows : {1, 8}) {
                const Machine machine{slope, /*draws=*/0, /*chance=*/0, guessed, num_rows};
                for (const int64_t num_steps : {50, 200, 1000}) {
                    // A hundredth of the steps, half a step, and a first trial that may turn out dear.
                    const double seconds = machine.run(num_steps, num_steps).seconds,
                                 without = static_cast<double>(num_steps);
                    const double most = std::max(1.01 * without + 0.7 + slope, 1.03 * without);
                    check(seconds <= most && (num_steps < 200 || seconds <= 1.03 * without),
                          "steps of slope " + std::to_string(slope) + ", guessed " + std::to_string(guessed) + ": " +
                              std::to_string(seconds / without));
                }
            }
        }
    }
}

// With its reading of the prompts, and wherever the rows end. A model may be slower than its size tells.
void check_useless(double slope, double draws, double supposed, int64_t num_rows) {
    const Machine machine{slope, draws, /*chance=*/0, DraftBudget::kHope, num_rows, /*prompt=*/0, supposed};
    for (const int64_t prompt : {1, 16, 64, 200, 1000}) {
        for (const int64_t num_new : {20, 50, 100, 200, 1000}) {
            for (const int64_t most_new : std::set<int64_t>{num_new, 1000}) {
                Machine one = machine;
                one.prompt = prompt;
                const Machine::Outcome outcome = one.run(num_new, most_new);
                const double ratio = outcome.seconds / outcome.seconds_without;
                check(ratio <= 1.03, "steps of slope " + std::to_string(slope) + ", drawing " + std::to_string(draws) +
                                         ", supposed " + std::to_string(supposed) + ", " + std::to_string(num_rows) +
                                         " rows, " + std::to_string(prompt) + " + " + std::to_string(num_new) +
                                         " tokens of " + std::to_string(most_new) + ": " + std::to_string(ratio));
            }
        }
    }
}

void a_useless_draft_model_costs_little() {
    for (const double slope : {0.02, 0.06, 0.3, 1.0}) {
        for (const double draws : {0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9}) {
            for (const double slower : {0.7, 1.0, 1.5}) {
                for (const int64_t num_rows : {1, 8}) check_useless(slope, draws, draws / slower, num_rows);
            }
        }
    }
}

void what_is_mostly_accepted_pays() {
    const auto speed = [](const Machine& machine) {
        const Machine::Outcome outcome = machine.run(1500, 1500);
        return outcome.seconds_without / outcome.seconds;
    };
    check(speed({0.1, 0, 0.9, 0.9, 1}) > 3, "looked up, cheap to verify");
    check(speed({0.3, 0, 0.8, 0.8, 1}) > 1.3, "looked up, dear to verify");
    check(speed({0.05, 0.1, 0.9, 0.7, 1}) > 2, "drawn by a small model");
    check(speed({0.01, 0, 0.9, 0.9, 8}) > 3, "looked up for eight rows");
    check(Machine{1.2, 0, 0.9, 0.9, 1}.run(300, 300).num_drafts < 20, "where a token costs a step there are none");
}

// Of ten drafts eight come. The smaller the model is and the longer the rows are, the sooner it has paid for itself.
void a_good_draft_model_pays_in_short_calls_too() {
    const auto speed = [](double slope, double draws, int64_t num_rows, int64_t prompt, int64_t num_new) {
        const Machine machine{slope, draws, /*chance=*/0.8, DraftBudget::kHope, num_rows, prompt};
        const Machine::Outcome outcome = machine.run(num_new, num_new);
        return outcome.seconds_without / outcome.seconds;
    };
    for (const int64_t prompt : {16, 200, 1000}) {
        check(speed(0.06, 0.05, 1, prompt, 50) > 1.2, "a twentieth of the model, 50 tokens");
        check(speed(0.06, 0.1, 1, prompt, 50) > 1.1, "a tenth, 50 tokens");
        check(speed(0.06, 0.1, 1, prompt, 200) > 1.4, "a tenth, 200 tokens");
        check(speed(0.06, 0.2, 1, prompt, 200) > 1.2, "a fifth, 200 tokens");
        check(speed(0.06, 0.3, 1, prompt, 1000) > 1.2, "almost a third, 1000 tokens");
        check(speed(0.02, 0.05, 8, prompt, 200) > 1.15, "a twentieth, eight rows of 200 tokens");
        check(speed(0.02, 0.1, 8, prompt, 1000) > 1.2, "a tenth, eight rows of 1000 tokens");
    }
}

void a_model_reads_all_of_a_long_prompt_once_it_has_paid() {
    const Machine good{0.06, 0.1, /*chance=*/0.8, DraftBudget::kHope, 1, /*prompt=*/1000};
    const int64_t glance = 1000 - DraftBudget::kGlance;
    check(good.run(5, 1000).first_read >= glance, "at first the last tokens do");
    check(good.run(200, 1000).first_read == 0, "later it has read all");
    check(good.run(60, 60).first_read >= glance, "not for the rest of a short row");
    Machine useless = good;
    useless.chance = 0;
    check(useless.run(1000, 1000).first_read >= glance, "not where nothing comes");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"the longest and most recent run is found", the_longest_and_most_recent_run_is_found},
            {"a cycle is drafted past its end", a_cycle_is_drafted_past_its_end},
            {"chances follow what comes", chances_follow_what_comes},
            {"what is looked up and never accepted costs little", what_is_looked_up_and_never_accepted_costs_little},
            {"a useless draft model costs little", a_useless_draft_model_costs_little},
            {"what is mostly accepted pays", what_is_mostly_accepted_pays},
            {"a good draft model pays in short calls too", a_good_draft_model_pays_in_short_calls_too},
            {"a model reads all of a long prompt once it has paid",
             a_model_reads_all_of_a_long_prompt_once_it_has_paid},
        },
        argc > 1 ? argv[1] : nullptr);
}
