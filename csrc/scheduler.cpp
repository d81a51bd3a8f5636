#include "scheduler.h"

#include <algorithm>
#include <string>

namespace demiurgic {

std::vector<Work> Scheduler::plan() {
    std::vector<Work> plan;
    for (Sequence* sequence : running_) blocks_.shrink(sequence->blocks, sequence->size());  // drafts were refused
    const int64_t preemptions_before = num_preemptions_;
    plan_running(plan);
    if (num_preemptions_ == preemptions_before) plan_waiting(plan);
    if (plan.empty() && drop_shared_prompts()) plan_waiting(plan);
    if (plan.empty() && !waiting_.empty()) {
        throw NoRoom("A sequence of " + std::to_string(waiting_.front()->size()) +
                     " tokens does not fit into a cache of " +
                     std::to_string(blocks_.capacity() * blocks_.block_size()) + " tokens.");
    }
    return plan;
}

namespace {

int64_t tokens_left(const Sequence& sequence) { return sequence.num_inputs() - sequence.num_cached; }

// The last token is never looked at.
int64_t most_cached(const Sequence& sequence) { return std::max(sequence.max_tokens, sequence.prompt_length) - 1; }

bool past_prompt(const Sequence* sequence) { return !sequence->scored && tokens_left(*sequence) == 1; }

// What a step has room for: tokens of prompts and of scored rows.
struct Budget {
    int64_t tokens;
    int64_t scored_tokens = Scheduler::kMaxScoredTokens;

    // Most tokens of the sequence that fit, from `num_cached` on: those that are scored stand in a row.
    int64_t for_row(const Sequence& sequence) const {
        const int64_t start = sequence.num_cached;
        const Sequence::Span unscored = sequence.unscored(start, sequence.num_inputs());
        return unscored.count > scored_tokens ? std::min(tokens, unscored.first + scored_tokens - start) : tokens;
    }
    void take(const Work& work) {
        tokens -= work.count;
        scored_tokens -= work.sequence->unscored(work.start, work.start + work.count).count;
    }
};

}  // namespace

std::vector<Work> Scheduler::plan_ahead(const std::vector<Work>& last) {
    std::vector<Work> plan;
    bool somebody_ends = false;
    auto part = last.begin();
    for (Sequence* sequence : running_) {
        while (part != last.end() && part->sequence != sequence) ++part;  // those between have ended
        if (part == last.end()) return {};                                // it was not in the step
        const int64_t start = part->start + part->count;
        const bool ends = start + 1 >= sequence->max_tokens;
        somebody_ends |= ends;
        if (ends) continue;
        if (blocks_.blocks_for(start + 1) > static_cast<int64_t>(sequence->blocks.size())) return {};
        plan.push_back({sequence, start, 1});
    }
    const bool somebody_starts = somebody_ends
                                     ? !waiting_.empty()
                                     : std::any_of(waiting_.begin(), waiting_.end(),
                                                   [this](const Sequence* waiting) { return may_start(*waiting); });
    if (somebody_starts) return {};
    make_room_ahead(plan);
    return plan;
}

void Scheduler::make_room_ahead(const std::vector<Work>& work) {
    for (const auto& [sequence, start, count, drafts] : work) {
        const int64_t num_tokens = start + count + 1;
        if (num_tokens >= sequence->max_tokens) continue;                      // the last token is never looked at
        blocks_.extend(sequence->blocks, num_tokens, most_cached(*sequence));  // or it rests; nobody's blocks are taken
    }
}

void Scheduler::plan_running(std::vector<Work>& plan) {
    // Sequences past their prompt always run, one token each; prompts share what is left of the budget.
    Budget budget{
        std::max<int64_t>(1, max_step_tokens_ - std::count_if(running_.begin(), running_.end(), past_prompt))};
    for (size_t i = 0; i < running_.size(); ++i) {  // preemption shortens running_ from behind
        Sequence& sequence = *running_[i];
        const bool always_runs = past_prompt(&sequence);
        const int64_t count = always_runs ? 1 : std::min(tokens_left(sequence), budget.for_row(sequence));
        if (count == 0) continue;
        if (!make_room(sequence, sequence.num_cached + count)) break;
        plan.push_back({&sequence, sequence.num_cached, count});
        if (!always_runs) budget.take(plan.back());
    }
}

void Scheduler::plan_waiting(std::vector<Work>& plan) {
    Budget budget{max_step_tokens_};
    for (const Work& work : plan) budget.take(work);
    for (size_t i = 0; i < waiting_.size() && budget.tokens > 0;) {
        Sequence& sequence = *waiting_[i];
        if (!may_start(sequence) || budget.for_row(sequence) == 0) {
            ++i;
            continue;
        }
        if (!start(sequence, budget.for_row(sequence), plan))
            break;  // nobody overtakes a sequence that waits for blocks
        waiting_.erase(waiting_.begin() + static_cast<int64_t>(i));
        budget.take(plan.back());
    }
}

bool Scheduler::may_start(const Sequence& sequence) const {
    if (sequence.call->num_running >= sequence.call->max_running) return false;
    const SharedPrompt* shared = sequence.shared_prompt.get();
    const bool leader_is_under_way = shared && shared->blocks.empty() && shared->leader && shared->leader != &sequence;
    return !leader_is_under_way;
}

bool Scheduler::start(Sequence& sequence, int64_t budget, std::vector<Work>& plan) {
    const PrefixIndex::Prefix prefix = computed_prefix(sequence);
    if (!fork(prefix, sequence)) return false;
    SharedPrompt* shared = sequence.shared_prompt.get();
    if (shared && !shared->blocks.empty()) {
        leave_shared_prompt(sequence);
    } else {
        if (shared) shared->leader = &sequence;
        num_hits_ += prefix.num_tokens > 0;
        num_reused_tokens_ += prefix.num_tokens;
    }
    const int64_t count = std::min(tokens_left(sequence), budget);
    blocks_.extend(sequence.blocks, sequence.num_cached + count, most_cached(sequence));
    running_.push_back(&sequence);
    ++sequence.call->num_running;
    plan.push_back({&sequence, sequence.num_cached, count});
    return true;
}

namespace {

// Scoring a data set shall not drive out what a session is kept for.
bool leaves_prefix(const Sequence& sequence) { return sequence.config->use_cache && !sequence.scored; }

// Where the logits after every token are wanted, all are computed.
bool uses_kept_prefixes(const Sequence& sequence) {
    return leaves_prefix(sequence) && sequence.unscored(0, sequence.num_inputs()).count == 0;
}

}  // namespace

// What the sequence need not compute; never its last token, whose logits are wanted. (That of a scored prompt is computed
// for nothing; there it is the last but one.)
PrefixIndex::Prefix Scheduler::computed_prefix(Sequence& sequence) {
    const SharedPrompt* shared = sequence.shared_prompt.get();
    if (shared && !shared->blocks.empty()) {
        sequence.epoch = shared->epoch;
        return {shared->blocks, sequence.num_inputs() - 1};
    }
    if (!kept_) return {};
    sequence.epoch = kept_->epoch();
    return uses_kept_prefixes(sequence) ? kept_->find(sequence.tokens, sequence.size() - 1) : PrefixIndex::Prefix{};
}

// Gives the sequence the blocks of `prefix`, if there is room for the rest of it beside them.
bool Scheduler::fork(const PrefixIndex::Prefix& prefix, Sequence& sequence) {
    const int64_t num_full = prefix.num_tokens / blocks_.block_size();
    const int64_t missing = blocks_.blocks_for(sequence.num_inputs()) - num_full;
    // Held, so that they are not evicted. The partly filled block may be: it is only copied, before anybody writes to it.
    std::vector<int32_t> full = blocks_.share(prefix.blocks, num_full * blocks_.block_size());
    bool fits = missing <= blocks_.num_free();
    while (!fits && free_kept()) fits = missing <= blocks_.num_free();
    if (fits) {
        blocks_.fork(prefix.blocks, prefix.num_tokens, sequence.blocks, pending_copies_, most_cached(sequence));
        sequence.num_cached = prefix.num_tokens;
    }
    blocks_.unshare(full);
    return fits;
}

void Scheduler::keep(Sequence& sequence, int64_t num_tokens) {
    if (!kept_ || sequence.epoch != kept_->epoch() || !leaves_prefix(sequence)) return;
    if (!sequence.call->keeps_if_settled) kept_->keep(sequence.tokens, num_tokens, sequence.blocks);
}

// What a removed sequence has computed, where it is not known yet whether that may be kept.
void Scheduler::leave(const Sequence& sequence) {
    if (!kept_ || sequence.epoch != kept_->epoch() || !leaves_prefix(sequence) || sequence.num_cached == 0) return;
    if (!sequence.call->keeps_if_settled || sequence.call->settled) return;
    left_.push_back({sequence.call,
                     sequence.epoch,
                     {sequence.tokens.begin(), sequence.tokens.begin() + sequence.num_cached},
                     blocks_.share(sequence.blocks, sequence.num_cached)});
}

bool Scheduler::has_left(const Call& call) const {
    return std::any_of(left_.begin(), left_.end(), [&](const Left& left) { return left.call == &call; });
}

void Scheduler::settle(Call& call, bool keeps) {
    call.settled = call.finished() || call.cancelled;
    for (Left& left : left_) {
        if (left.call != &call) continue;
        if (keeps && left.epoch == kept_->epoch()) {
            kept_->keep(left.tokens, static_cast<int64_t>(left.tokens.size()), left.blocks);
        }
        blocks_.unshare(left.blocks);
    }
    std::erase_if(left_, [&](const Left& left) { return left.call == &call; });
}

bool Scheduler::drop_left() {
    if (left_.empty()) return false;
    blocks_.unshare(left_.front().blocks);
    left_.erase(left_.begin());
    return true;
}

bool Scheduler::free_kept() { return (kept_ && kept_->evict()) || drop_left(); }

bool Scheduler::make_room(Sequence& sequence, int64_t num_tokens) {
    while (!blocks_.extend(sequence.blocks, num_tokens, most_cached(sequence))) {
        if (free_kept() || drop_shared_prompts()) continue;
        Sequence& last = *running_.back();
        preempt(last);
        if (&last == &sequence) return false;
    }
    return true;
}

int64_t Scheduler::make_room_for_drafts(const Work& work, int64_t most) {
    std::vector<int32_t>& blocks = work.sequence->blocks;
    const int64_t end = work.start + work.count;
    const int64_t room = (static_cast<int64_t>(blocks.size()) + blocks_.num_free()) * blocks_.block_size() - end;
    const int64_t count = std::min(most, room);
    blocks_.extend(blocks, end + count, most_cached(*work.sequence));
    return count;
}

void Scheduler::preempt(Sequence& sequence) {
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
    --sequence.call->num_running;
    keep(sequence, sequence.num_cached);
    blocks_.release(sequence.blocks);
    sequence.num_cached = 0;
    waiting_.push_front(&sequence);
    ++num_preemptions_;
}

void Scheduler::computed(const Work& work) {
    Sequence& sequence = *work.sequence;
    sequence.num_cached = work.start + work.count;
    // Full blocks of a prompt do not change any more: rows that start next find them.
    if (work.start < sequence.prompt_length) {
        keep(sequence, sequence.num_cached / blocks_.block_size() * blocks_.block_size());
    }
    const int64_t num_shared = std::min(sequence.prompt_length, sequence.num_inputs());
    if (sequence.shared_prompt && sequence.num_cached >= num_shared) {
        sequence.shared_prompt->blocks = blocks_.share(sequence.blocks, num_shared);
        sequence.shared_prompt->epoch = sequence.epoch;
        leave_shared_prompt(sequence);
    }
    if (!sequence.config->use_cache && work.gives_token()) sequence.num_cached = 0;
}

void Scheduler::draft_accepted(Sequence& sequence) {
    if (sequence.config->use_cache) ++sequence.num_cached;
}

void Scheduler::remove(Sequence& sequence) {
    const auto running = std::find(running_.begin(), running_.end(), &sequence);
    if (running != running_.end()) {
        running_.erase(running);
        --sequence.call->num_running;
    } else {
        const auto waiting = std::find(waiting_.begin(), waiting_.end(), &sequence);
        if (waiting != waiting_.end()) waiting_.erase(waiting);
    }
    keep(sequence, sequence.num_cached);
    leave(sequence);
    blocks_.release(sequence.blocks);
    leave_shared_prompt(sequence);
}

void Scheduler::leave_shared_prompt(Sequence& sequence) {
    if (!sequence.shared_prompt) return;
    SharedPrompt& shared = *sequence.shared_prompt;
    if (shared.leader == &sequence) shared.leader = nullptr;
    if (--shared.num_members == 0) blocks_.unshare(shared.blocks);
    sequence.shared_prompt.reset();
}

bool Scheduler::drop_shared_prompts() {
    bool dropped = false;
    for (Sequence* sequence : waiting_) {
        SharedPrompt* shared = sequence->shared_prompt.get();
        if (!shared || shared->blocks.empty()) continue;
        blocks_.unshare(shared->blocks);  // the next member to start computes the prompt again
        dropped = true;
    }
    return dropped;
}

}  // namespace demiurgic
