#include "drafter.h"

#include <algorithm>

#include "stopwatch.h"

namespace demiurgic {

// The parts by where their drafts come from. A draft beside the tokens of a prompt would have a price that other steps do not
// tell.
void Drafter::group(const std::vector<Work>& work) {
    groups_.clear();
    may_draft_ = true;
    DraftBudget::Step step{0, static_cast<int64_t>(work.size()), 0};
    for (size_t i = 0; i < work.size(); ++i) {
        Sequence& sequence = *work[i].sequence;
        if (!work[i].gives_token() || (work[i].count > 1 && sequence.config->use_cache)) may_draft_ = false;
        step.num_tokens += work[i].count;
        DraftModel* model = sequence.call->draft_model.get();
        if (!model && sequence.config->speculate != "ngram") continue;
        const auto known =
            std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) { return g.model == model; });
        if (known != groups_.end()) {
            known->parts.push_back(i);
        } else {
            groups_.push_back({model ? &model->budget() : &lookup_budget_, model, {}, {i}, {}, {}});
        }
    }
    for (Group& group : groups_) group.step = step;
}

void Drafter::plan(std::vector<Work>& work, Scheduler& scheduler) {
    seconds_to_draw_ = 0;
    group(work);
    if (groups_.empty() || !may_draft_) return;
    accepted_before_.clear();
    for (const Work& part : work) accepted_before_.push_back(part.sequence->num_accepted);
    int64_t num_drafts = 0;
    for (Group& group : groups_) {
        group.step.num_tokens += num_drafts;
        // As scored tokens, each has a row of logits.
        group.step.most_drafts =
            std::min(max_step_tokens_ - group.step.num_tokens, Scheduler::kMaxScoredTokens - num_drafts);
        choose(group, work, scheduler);
        for (const int64_t length : group.lengths) num_drafts += length;
    }
}

DraftBudget::Row Drafter::row_of(Group& group, const Sequence& sequence) const {
    const int64_t left = sequence.max_tokens - sequence.size();
    const int64_t most = std::min(sequence.config->max_draft_tokens, left - 1);  // the last token is never looked at
    if (!group.model) return {sequence.lookup->chances(most)};
    const DraftBudget::Read read = group.model->read(sequence);
    DraftBudget::Reading reading = group.budget->reading(read, sequence.size(), left, group.step, costs_);
    // Tests shall see both, whatever the clock says: a glance at first, then all.
    if (sequence.call->always_drafts) {
        const int64_t glance = std::max<int64_t>(0, sequence.size() - DraftBudget::kGlance);
        reading.first = sequence.num_generated() > 2 ? 0 : read.end > read.first ? read.first : glance;
    }
    group.first_read.push_back(reading.first);
    return {group.model->chances(sequence, most), reading.seconds, left};
}

void Drafter::choose(Group& group, std::vector<Work>& work, Scheduler& scheduler) {
    std::vector<DraftBudget::Row> rows;
    for (const size_t i : group.parts) {
        Sequence& sequence = *work[i].sequence;
        // Not before: rows that wait need no memory for it.
        if (!group.model && !sequence.lookup) sequence.lookup = std::make_unique<PromptLookup>(sequence.tokens);
        rows.push_back(row_of(group, sequence));
    }
    group.lengths = group.budget->lengths(rows, group.step, costs_);
    int64_t left = group.step.most_drafts;
    for (size_t i = 0; i < group.parts.size(); ++i) {
        Work& part = work[group.parts[i]];
        if (part.sequence->call->always_drafts) group.lengths[i] = static_cast<int64_t>(rows[i].chances.size());
        group.lengths[i] = std::clamp<int64_t>(left, 0, group.lengths[i]);
        left -= group.lengths[i];
        if (group.lengths[i] == 0) continue;
        group.lengths[i] = scheduler.make_room_for_drafts(part, group.lengths[i]);
        if (!group.model) part.drafts = part.sequence->lookup->drafts(part.sequence->tokens, group.lengths[i]);
    }
}

void Drafter::draw(std::vector<Work>& work, const Poll& poll) {
    Stopwatch watch;
    for (Group& group : groups_) {
        if (!group.model) continue;
        std::vector<DraftModel::Wanted> wanted;
        for (size_t i = 0; i < group.parts.size(); ++i) {
            if (group.lengths.empty() || group.lengths[i] == 0) continue;
            wanted.push_back({&work[group.parts[i]], group.lengths[i], group.first_read[i]});
        }
        if (!wanted.empty()) group.model->draw(wanted, poll);
    }
    seconds_to_draw_ = watch.seconds();
}

void Drafter::learn(const std::vector<Work>& work, double seconds) {
    if (groups_.empty()) return;
    int64_t num_tokens = 0;
    for (const Work& part : work) num_tokens += part.count + static_cast<int64_t>(part.drafts.size());
    const double share = seconds / static_cast<double>(groups_.size());  // all of them may cost as much as one alone
    if (may_draft_) {
        costs_.measured(num_tokens, seconds - seconds_to_draw_);
        for (Group& group : groups_) learn(group, work, share);
    } else {
        costs_.measured_prompt(num_tokens, seconds);
        for (Group& group : groups_) group.budget->earned(share);
    }
    groups_.clear();
}

void Drafter::learn(Group& group, const std::vector<Work>& work, double seconds) {
    int64_t num_accepted = 0;
    for (size_t i = 0; i < group.parts.size(); ++i) {
        const Work& part = work[group.parts[i]];
        const int64_t accepted = part.sequence->num_accepted - accepted_before_[group.parts[i]];
        group.lengths[i] = static_cast<int64_t>(part.drafts.size());
        if (group.model) group.model->learn(*part.sequence, group.lengths[i], accepted);
        num_accepted += accepted;
    }
    group.budget->spent(group.lengths, num_accepted, seconds, group.step, costs_);
}

}  // namespace demiurgic
