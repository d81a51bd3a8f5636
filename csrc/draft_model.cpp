#include "draft_model.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "stopwatch.h"

namespace demiurgic {

DraftModel::DraftModel(std::shared_ptr<const Weights> weights, int64_t block_size, int64_t max_step_tokens,
                       int64_t target_bytes)
    : weights_(std::move(weights)),
      kernels_(weights_->rows_are_contiguous() ? kernels_for(weights_->device(), weights_->dtype())
                                               : reference_alone()),
      max_step_tokens_(max_step_tokens),
      blocks_(block_size),
      cache_(*weights_, block_size, kernels_.cache_layout),
      decoder_(*weights_, kernels_),
      sampler_(kernels_, weights_->device()),
      budget_(static_cast<double>(weights_->bytes_of_step()) / static_cast<double>(target_bytes)) {}

void DraftModel::resize(int64_t num_blocks) {
    if (num_blocks < cache_.num_blocks()) {
        followers_.clear();
        blocks_ = KVBlocks(blocks_.block_size());
        cache_ = KVCache(*weights_, blocks_.block_size(), kernels_.cache_layout);
    }
    most_blocks_ = num_blocks;
}

// No memory is no reason to end a call, whose result needs no drafts: then there are fewer.
void DraftModel::grow_cache() {
    try {
        cache_.grow(most_blocks_);
    } catch (const c10::Error&) {
        most_blocks_ = cache_.num_blocks();
        if (most_blocks_ == 0) cache_.clear();  // of the tensors that could be had
    }
    blocks_.grow(most_blocks_);
}

std::vector<double> DraftModel::chances(const Sequence& sequence, int64_t most) const {
    const auto found = followers_.find(&sequence);
    const double right = found != followers_.end() ? found->second.right : right_;
    std::vector<double> chances;
    double chance = 1;
    for (int64_t i = 0; i < most; ++i) chances.push_back(chance *= right);
    return chances;
}

// Of the tokens that `follower` has seen, those that are still the sequence's.
int64_t DraftModel::num_same(const Follower& follower, const Sequence& sequence) {
    const std::vector<int64_t>& seen = follower.seen->tokens;
    const int64_t most = std::min(follower.seen->size(), sequence.size() - follower.first);
    int64_t same = follower.num_followed;
    while (same < most && seen[same] == sequence.tokens[follower.first + same]) ++same;
    return same;
}

DraftBudget::Read DraftModel::read(const Sequence& sequence) const {
    const auto found = followers_.find(&sequence);
    if (found == followers_.end()) return {0, 0};
    const Follower& follower = found->second;
    return {follower.first, follower.first + std::min(follower.seen->num_cached, num_same(follower, sequence))};
}

// Drops drafts that were refused, and takes over the tokens that have come since.
void DraftModel::follow(const Sequence& sequence, int64_t first) {
    const auto [found, is_new] = followers_.try_emplace(&sequence);
    Follower& follower = found->second;
    if (is_new) follower.right = right_;
    const auto from_first = sequence.tokens.begin() + first;
    if (!follower.seen || follower.first != first) {
        if (follower.seen) blocks_.release(follower.seen->blocks);
        GenerationConfig plain;
        plain.eos_token_id = Ids{};
        const auto config = std::make_shared<const GenerationConfig>(plain);
        follower.first = first;
        follower.num_followed = 0;
        follower.seen =
            std::make_unique<Sequence>(std::vector(from_first, sequence.tokens.end()), config, sequence.seed);
    }
    Sequence& seen = *follower.seen;
    const int64_t same = num_same(follower, sequence);
    seen.tokens.assign(from_first, sequence.tokens.end());
    seen.num_cached = std::min({seen.num_cached, same, seen.size() - 1});
    follower.num_followed = seen.size();
    blocks_.shrink(seen.blocks, seen.num_cached);
}

// Of each sequence that wants another draft what is not cached of it. Takes those out for which there is no room.
DraftModel::Step DraftModel::plan(std::vector<Wanted>& wanted) {
    Step step;
    int64_t budget = max_step_tokens_;
    std::erase_if(wanted, [&](const Wanted& row) {
        if (static_cast<int64_t>(row.work->drafts.size()) >= row.count) return true;
        Sequence& seen = *followers_.at(row.work->sequence).seen;
        const int64_t count = std::min(seen.size() - seen.num_cached, budget);
        if (count == 0) return false;  // in a later step
        if (!blocks_.extend(seen.blocks, seen.num_cached + count)) return true;
        step.work.push_back({&seen, seen.num_cached, count});
        step.targets.push_back(row.work);
        budget -= count;
        return false;
    });
    return step;
}

void DraftModel::draw(const std::vector<Wanted>& all, const Poll& poll) {
    grow_cache();
    std::vector<Wanted> wanted = all;
    for (const Wanted& row : wanted) follow(*row.work->sequence, row.first);
    for (Step step = plan(wanted); !step.work.empty(); step = plan(wanted)) run(step, poll);
}

void DraftModel::run(const Step& step, const Poll& poll) {
    Stopwatch watch;
    const Batch batch(step.work, blocks_.block_size(), weights_->device());
    const at::Tensor logits = decoder_.decode(batch, cache_, poll);
    std::vector<size_t> drawing;
    std::vector<Sampler::Ahead> rows;
    for (size_t i = 0; i < step.work.size(); ++i) {
        const Work& part = step.work[i];
        if (part.gives_token()) {
            drawing.push_back(i);
            const Work& target = *step.targets[i];
            rows.push_back({target.sequence, target.sequence->size() + static_cast<int64_t>(target.drafts.size())});
        }
        part.sequence->num_cached = part.start + part.count;
    }
    if (!rows.empty()) {
        const std::vector<Sample> samples = sampler_.guess(logits, rows);
        for (size_t i = 0; i < samples.size(); ++i) {
            // Where this model allows no token, any guess will do.
            const int64_t token = std::max<int64_t>(0, samples[i].token);
            step.targets[drawing[i]]->drafts.push_back(token);
            step.work[drawing[i]].sequence->tokens.push_back(token);
        }
    }
    account(step.work, watch.seconds());
}

void DraftModel::account(const std::vector<Work>& work, double seconds) {
    int64_t num_tokens = 0;
    for (const Work& part : work) num_tokens += part.count;
    if (num_tokens <= 2 * static_cast<int64_t>(work.size())) {
        budget_.drew(seconds);
    } else {
        budget_.read(num_tokens, seconds);
    }
}

void DraftModel::learn(const Sequence& sequence, int64_t num_drafts, int64_t num_accepted) {
    constexpr double weight = 1.0 / 8;
    const auto found = followers_.find(&sequence);
    if (found == followers_.end()) return;
    for (double* right : {&found->second.right, &right_}) {
        for (int64_t i = 0; i < num_accepted; ++i) *right += weight * (1 - *right);
        if (num_accepted < num_drafts) *right -= weight * *right;
    }
}

void DraftModel::forget(const Sequence& sequence) {
    const auto found = followers_.find(&sequence);
    if (found == followers_.end()) return;
    blocks_.release(found->second.seen->blocks);
    followers_.erase(found);
}

}  // namespace demiurgic
