#pragma once

#include <vector>

#include "draft_budget.h"
#include "draft_model.h"
#include "scheduler.h"

namespace demiurgic {

// Brings drafts into the steps of an engine: guesses of the tokens that follow, which go through the decoder with the
// tokens that are known. Where the next token turns out to be the draft, the one after it is there without another step.
// Drafts never change what comes, so when there are some, and how many, is chosen by the clock.
class Drafter {
public:
    // `max_step_tokens`: a step with drafts has no more tokens.
    explicit Drafter(int64_t max_step_tokens) : max_step_tokens_(max_step_tokens) {}

    // Settles how many drafts each part of a planned step brings, makes room for them, and looks up those that come from the
    // sequences themselves.
    void plan(std::vector<Work>& work, Scheduler& scheduler);

    // Draws those that come from models. What `poll` throws leaves here.
    void draw(std::vector<Work>& work, const Poll& poll);

    // The step is done, after `seconds`, with those to draw drafts.
    void learn(const std::vector<Work>& work, double seconds);

private:
    // The parts of a step whose drafts come from one place.
    struct Group {
        DraftBudget* budget;
        DraftModel* model;          // null: from the sequences themselves
        DraftBudget::Step step;     // before these drafts
        std::vector<size_t> parts;  // of the work
        std::vector<int64_t> lengths;
        std::vector<int64_t> first_read;  // by a model: the first token of its part's sequence
    };

    void group(const std::vector<Work>& work);
    DraftBudget::Row row_of(Group& group, const Sequence& sequence) const;
    void choose(Group& group, std::vector<Work>& work, Scheduler& scheduler);
    void learn(Group& group, const std::vector<Work>& work, double seconds);

    const int64_t max_step_tokens_;
    StepCosts costs_;
    DraftBudget lookup_budget_{/*relative_cost=*/0};

    // Of the step under way.
    std::vector<Group> groups_;
    bool may_draft_ = false;                // it is one of decoding alone
    std::vector<int64_t> accepted_before_;  // of the sequence of each part
    double seconds_to_draw_ = 0;
};

}  // namespace demiurgic
