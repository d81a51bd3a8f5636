#include "kv_blocks.h"

#include <algorithm>

namespace demiurgic {

void KVBlocks::clear() {
    references_.clear();
    promised_.clear();
    num_free_ = 0;
}

void KVBlocks::grow(int64_t capacity) {
    const int64_t added = capacity - this->capacity();
    if (added <= 0) return;
    references_.resize(capacity, 0);
    promised_.resize(capacity, false);
    num_free_ += added;
}

namespace {

struct Run {
    int64_t first = 0;
    int64_t count = 0;
};

}  // namespace

// Where a table begins a run of `num_blocks`: the lowest run of free blocks that holds them and is promised to nobody; else
// the longest one; where twice as many are promised, half of those.
int64_t KVBlocks::start_of_run(int64_t num_blocks) const {
    Run unpromised, free, longest_unpromised, longest_free;
    for (int64_t block = 0; block < capacity(); ++block) {
        free = is_free(block) ? Run{block - free.count, free.count + 1} : Run{};
        unpromised = is_free(block) && !promised_[block] ? Run{block - unpromised.count, unpromised.count + 1} : Run{};
        if (free.count > longest_free.count) longest_free = free;
        if (unpromised.count > longest_unpromised.count) longest_unpromised = unpromised;
        if (longest_unpromised.count >= num_blocks) return longest_unpromised.first;
    }
    if (2 * longest_unpromised.count >= longest_free.count) return longest_unpromised.first;
    return longest_free.first + longest_free.count / 2;
}

void KVBlocks::promise(int64_t first, int64_t num_blocks) {
    for (int64_t block = first; block < first + num_blocks && is_free(block); ++block) promised_[block] = true;
}

// How many it were.
int64_t KVBlocks::withdraw(int64_t first) {
    int64_t block = first;
    for (; block < capacity() && promised_[block]; ++block) promised_[block] = false;
    return block - first;
}

// One block more for `table`.
void KVBlocks::take(std::vector<int32_t>& table, int64_t most_tokens) {
    int64_t block = table.empty() ? 0 : table.back() + 1;
    if (table.empty() || !is_free(block)) {
        const int64_t wanted =
            std::clamp(blocks_for(most_tokens) - static_cast<int64_t>(table.size()), int64_t{1}, capacity());
        block = start_of_run(wanted);
        promise(block + 1, wanted - 1);
    }
    references_[block] = 1;
    promised_[block] = false;
    --num_free_;
    table.push_back(static_cast<int32_t>(block));
}

bool KVBlocks::extend(std::vector<int32_t>& table, int64_t num_tokens, int64_t most_tokens) {
    const int64_t missing = blocks_for(num_tokens) - static_cast<int64_t>(table.size());
    if (missing > num_free()) return false;
    for (int64_t i = 0; i < missing; ++i) take(table, std::max(num_tokens, most_tokens));
    return true;
}

bool KVBlocks::fork(const std::vector<int32_t>& table, int64_t num_tokens, std::vector<int32_t>& forked,
                    std::vector<BlockCopy>& copies, int64_t most_tokens) {
    const int64_t num_full = num_tokens / block_size_;
    const bool partial = num_tokens % block_size_ != 0;
    if (partial && num_free() == 0) return false;
    forked = share(table, num_full * block_size_);
    if (partial) {
        take(forked, std::max(num_tokens, most_tokens));
        if (forked.back() != table[num_full]) copies.push_back({table[num_full], forked.back()});
    }
    return true;
}

std::vector<int32_t> KVBlocks::share(const std::vector<int32_t>& table, int64_t num_tokens) {
    std::vector<int32_t> shared(table.begin(), table.begin() + blocks_for(num_tokens));
    for (const int32_t block : shared) hold(block);
    return shared;
}

void KVBlocks::unshare(std::vector<int32_t>& shared) {
    for (const int32_t block : shared) release(block);
    shared.clear();
}

void KVBlocks::shrink(std::vector<int32_t>& table, int64_t num_tokens) {
    const int64_t num_left = blocks_for(num_tokens), dropped = static_cast<int64_t>(table.size()) - num_left;
    if (dropped <= 0) return;
    const int64_t room = dropped + withdraw(table.back() + 1);
    for (int64_t i = num_left; i < num_left + dropped; ++i) release(table[i]);
    table.resize(num_left);
    if (!table.empty()) promise(table.back() + 1, room);
}

void KVBlocks::release(std::vector<int32_t>& table) { shrink(table, 0); }

void KVBlocks::release(int32_t block) {
    if (--references_[block] == 0) ++num_free_;
}

void KVBlocks::exchange(int32_t& block, int32_t other) {
    hold(other);
    promise(other + 1, withdraw(block + 1));
    release(block);
    block = other;
}

}  // namespace demiurgic
