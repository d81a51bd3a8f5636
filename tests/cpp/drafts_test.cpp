// Where drafts are looked up, and how many of them a step brings.

#include <algorithm>
#include <cmath>
#include <cstdint>
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
    double slope;            // of a step, for another token
    double seconds_to_draw;  // 0: drafts are looked up
    double chance;           // that a draft comes
    double guessed;          // what the row's chances say
    int64_t num_rows = 1;

    double seconds_of(int64_t num_tokens) const { return 1 + slope * static_cast<double>(num_tokens - num_rows); }

    struct Outcome {
        double seconds = 0;
        int64_t num_tokens = 0, num_drafts = 0;
    };

    Outcome run(int64_t num_steps, int64_t most_drafts) const {
        StepCosts costs;
        DraftBudget budget(seconds_to_draw > 0);
        Outcome outcome;
        Dice dice{7};
        double belief = guessed;
        for (int64_t i = 0; i < num_steps; ++i) {
            const DraftBudget::Step step{num_rows, num_rows, 128, 0};
            std::vector<double> chances;
            for (int64_t k = 1; k <= most_drafts; ++k) chances.push_back(std::pow(belief, static_cast<double>(k)));
            const std::vector<int64_t> lengths =
                budget.lengths(std::vector<std::vector<double>>(static_cast<size_t>(num_rows), chances), step, costs);
            int64_t drafts = 0, accepted = 0, deepest = 0;
            for (const int64_t length : lengths) {
                drafts += length, deepest = std::max(deepest, length);
                for (int64_t k = 0; k < length; ++k) {
                    const bool came = dice.falls(chance);
                    if (seconds_to_draw > 0) belief += ((came ? 1.0 : 0.0) - belief) / 8;
                    if (!came) break;
                    ++accepted;
                }
            }
            const double seconds = seconds_of(num_rows + drafts);
            for (int64_t k = 0; k < deepest; ++k) budget.drew(seconds_to_draw);
            costs.measured(num_rows + drafts, seconds);
            budget.spent(lengths, accepted, seconds, step, costs);
            outcome.seconds += seconds + static_cast<double>(deepest) * seconds_to_draw;
            outcome.num_tokens += num_rows + accepted;
            outcome.num_drafts += drafts;
        }
        return outcome;
    }
};

void what_is_never_accepted_costs_little() {
    for (const double slope : {0.0, 0.05, 0.3, 1.0}) {
        for (const double to_draw : {0.0, 0.05, 0.3, 0.8}) {
            for (const double guessed : {0.3, 0.7, 0.95}) {
                for (const int64_t num_rows : {1, 8}) {
                    const Machine machine{slope, to_draw, /*chance=*/0, guessed, num_rows};
                    for (const int64_t num_steps : {50, 200, 1000}) {
                        const double seconds = machine.run(num_steps, 16).seconds;
                        // A hundredth of the steps, half a step, and a first trial that may turn out dear.
                        const double without = static_cast<double>(num_steps);
                        const double most = std::max(1.01 * without + 0.7 + slope + to_draw, 1.03 * without);
                        check(seconds <= most && (num_steps < 200 || seconds <= 1.03 * without),
                              "steps of slope " + std::to_string(slope) + ", drawing " + std::to_string(to_draw) +
                                  ", guessed " + std::to_string(guessed) + ": " + std::to_string(seconds / without));
                    }
                }
            }
        }
    }
}

void what_is_mostly_accepted_pays() {
    const auto speed = [](const Machine& machine) {
        const Machine::Outcome outcome = machine.run(300, 16);
        return static_cast<double>(outcome.num_tokens) / outcome.seconds / static_cast<double>(machine.num_rows);
    };
    check(speed({0.1, 0, 0.9, 0.9, 1}) > 3, "looked up, cheap to verify");
    check(speed({0.3, 0, 0.8, 0.8, 1}) > 1.3, "looked up, dear to verify");
    check(speed({0.05, 0.1, 0.9, 0.7, 1}) > 2, "drawn by a small model");
    check(speed({0.01, 0, 0.9, 0.9, 8}) > 3, "looked up for eight rows");
    check(Machine{1.2, 0, 0.9, 0.9, 1}.run(300, 16).num_drafts < 20, "where a token costs a step there are none");
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
            {"what is never accepted costs little", what_is_never_accepted_costs_little},
            {"what is mostly accepted pays", what_is_mostly_accepted_pays},
        },
        argc > 1 ? argv[1] : nullptr);
}
