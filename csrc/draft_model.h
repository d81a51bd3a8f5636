#pragma once

#include <map>
#include <memory>
#include <vector>

#include "decoder.h"
#include "draft_budget.h"
#include "kv_cache.h"
#include "sampler.h"

namespace demiurgic {

// A small model that guesses the next tokens of a larger one's sequences. It draws with the same options and random
// numbers, so that it agrees as often as it can. It has a cache of its own, which follows the tokens that are accepted.
// Used by one thread at a time: the one that steps.
class DraftModel {
public:
    // For a model whose step reads `target_bytes` of weights.
    DraftModel(std::shared_ptr<const Weights> weights, int64_t block_size, int64_t max_step_tokens,
               int64_t target_bytes);

    const Weights& weights() const { return *weights_; }
    DraftBudget& budget() { return budget_; }

    int64_t block_bytes() const { return cache_.block_bytes(); }
    int64_t num_blocks() const { return cache_.num_blocks(); }

    // What the cache may have. More is taken when drafts are wanted; with less than it has it is emptied, and what is
    // needed is computed again.
    void resize(int64_t num_blocks);

    // For each of at most `most` drafts of `sequence` the chance that it comes, and all before it.
    std::vector<double> chances(const Sequence& sequence, int64_t most) const;

    // What it has read of `sequence`, as far as that is still its text.
    DraftBudget::Read read(const Sequence& sequence) const;

    // Appends to Work::drafts until there are `count`; fewer where the cache has no room, or the model gives no token.
    struct Wanted {
        Work* work;
        int64_t count;
        int64_t first;  // token of the sequence that is read; what was read from another on is read again
    };
    // What `poll`, asked between layers, throws leaves here; nothing needs to be undone then.
    void draw(const std::vector<Wanted>& wanted, const Poll& poll);

    // So many drafts of `sequence` were verified, the first `num_accepted` of them accepted.
    void learn(const Sequence& sequence, int64_t num_drafts, int64_t num_accepted);

    // The sequence has ended.
    void forget(const Sequence& sequence);

private:
    // What the model has seen of one sequence.
    struct Follower {
        // Its tokens from `first` on, then drafts; which of them are cached, and where. Without options: its edits are not
        // looked at.
        std::unique_ptr<Sequence> seen;
        int64_t first = 0;
        int64_t num_followed = 0;           // the first so many tokens of `seen` are the sequence's own
        double right = DraftBudget::kHope;  // how often a draft comes: a moving mean, begun with that of all sequences
    };

    // A step of this model: `targets` are the larger model's work for each part of its own.
    struct Step {
        std::vector<Work> work;
        std::vector<Work*> targets;
    };

    void grow_cache();
    static int64_t num_same(const Follower& follower, const Sequence& sequence);
    void follow(const Sequence& sequence, int64_t first);
    Step plan(std::vector<Wanted>& wanted);
    void run(const Step& step, const Poll& poll);
    void account(const std::vector<Work>& work, double seconds);

    const std::shared_ptr<const Weights> weights_;
    const Kernels& kernels_;
    const int64_t max_step_tokens_;
    int64_t most_blocks_ = 0;
    KVBlocks blocks_;
    KVCache cache_;
    Decoder decoder_;
    Sampler sampler_;
    DraftBudget budget_;
    double right_ = DraftBudget::kHope;  // how often a draft comes, of all sequences
    std::map<const Sequence*, Follower> followers_;
};

}  // namespace demiurgic
