#pragma once

#include <cstdint>
#include <deque>
#include <stdexcept>
#include <vector>

#include "kv_blocks.h"
#include "prefix_index.h"
#include "sequence.h"

namespace demiurgic {

// The part of one step that belongs to one sequence: its tokens [start, start + count) go through the decoder.
struct Work {
    Sequence* sequence;
    int64_t start;
    int64_t count;
    std::vector<int64_t> drafts =
        {};  // guesses of the tokens that follow its last one; they go through the decoder too

    // The last token that the sequence has is among them, so the step gives the logits of its next one. Never of a
    // scored row.
    bool gives_token() const { return start + count == sequence->size(); }
};

struct NoRoom : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Who runs in the next step, and how many tokens of each: admission, chunks of prompts, preemption, copies of a prompt.
// A plan whose step was interrupted does no harm: the next plan holds the same work.
class Scheduler {
public:
    // Most tokens of rows and prompts that are scored in a step: each has a row of logits, [V] float32. It bounds memory,
    // however long they are.
    static constexpr int64_t kMaxScoredTokens = 128;

    // A step computes at most `max_step_tokens` tokens of prompts, less one for each sequence that is past its prompt.
    // `kept`: where sequences find computed prefixes when they start, and leave theirs when they end; null: nowhere.
    Scheduler(KVBlocks& blocks, int64_t max_step_tokens, PrefixIndex* kept = nullptr)
        : blocks_(blocks), max_step_tokens_(max_step_tokens), kept_(kept) {}

    void add(Sequence& sequence) { waiting_.push_back(&sequence); }

    // The next step; empty where no sequence is left. Where blocks run out, kept prefixes that nobody uses are evicted,
    // the least recently used first; then the sequences admitted last lose their blocks ("preemption"), wait at the head
    // of the queue and are computed again later. Throws NoRoom where a sequence does not fit though it has the cache for
    // itself.
    std::vector<Work> plan();

    // The step after `last`, which is under way: each row has one token more by then, whichever it is. Rows that end by their
    // length with `last` are left out. Empty where who runs depends on what `last` gives, where somebody who waits may start,
    // or where a row lacks the room that make_room_ahead would have given it.
    std::vector<Work> plan_ahead(const std::vector<Work>& last);

    // Gives each row of a step blocks for the token that the step gives, of those that nobody needs; nobody is preempted.
    void make_room_ahead(const std::vector<Work>& work);

    // Gives the sequence of `work` blocks for drafts behind its tokens, of those that are free: for `most` drafts or as many
    // as there is room for, which is returned. Nobody is preempted for a draft, no kept
    // prefix is evicted, and the next plan takes back what is unused.
    int64_t make_room_for_drafts(const Work& work, int64_t most);

    // Block copies that must be made, in order, before the work of a plan; clear them once they are made.
    std::vector<BlockCopy>& pending_copies() { return pending_copies_; }

    // The keys and values of `work` are in the cache. To be called before the next token is appended.
    void computed(const Work& work);

    // The next token of a sequence turned out to be a draft, whose keys and values are in the cache as well. To be called
    // before the token after it is appended.
    void draft_accepted(Sequence& sequence);

    // Takes the sequence out and frees its blocks, wherever it stands.
    void remove(Sequence& sequence);

    // What the ended rows of a call with `keeps_if_settled` have left is kept, or goes. Until then it is held, and goes
    // where others need the room.
    bool has_left(const Call& call) const;
    void settle(Call& call, bool keeps);

    // Lets what was left first go; false where there is nothing.
    bool drop_left();

    int64_t num_preemptions() const { return num_preemptions_; }

    // Sequences that started from a kept prefix, and the tokens that they did not compute again.
    int64_t num_hits() const { return num_hits_; }
    int64_t num_reused_tokens() const { return num_reused_tokens_; }

private:
    void plan_running(std::vector<Work>& plan);
    void plan_waiting(std::vector<Work>& plan);
    bool may_start(const Sequence& sequence) const;
    bool start(Sequence& sequence, int64_t budget, std::vector<Work>& plan);
    PrefixIndex::Prefix computed_prefix(Sequence& sequence);
    bool fork(const PrefixIndex::Prefix& prefix, Sequence& sequence);
    void keep(Sequence& sequence, int64_t num_tokens);
    void leave(const Sequence& sequence);
    bool free_kept();
    bool make_room(Sequence& sequence, int64_t num_tokens);
    void preempt(Sequence& sequence);
    void leave_shared_prompt(Sequence& sequence);
    bool drop_shared_prompts();

    KVBlocks& blocks_;
    const int64_t max_step_tokens_;
    std::vector<Sequence*> running_;  // in order of admission
    std::deque<Sequence*> waiting_;
    std::vector<BlockCopy> pending_copies_;
    int64_t num_preemptions_ = 0;
    PrefixIndex* const kept_;
    struct Left {
        const Call* call;
        int64_t epoch;
        std::vector<int64_t> tokens;
        std::vector<int32_t> blocks;
    };
    std::vector<Left> left_;
    int64_t num_hits_ = 0;
    int64_t num_reused_tokens_ = 0;
};

}  // namespace demiurgic
