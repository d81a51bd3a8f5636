#include "kv_blocks.h"

namespace demiurgic {

void KVBlocks::clear() {
    references_.clear();
    free_.clear();
}

void KVBlocks::grow(int64_t capacity) {
    const int64_t old = this->capacity();
    if (capacity <= old) return;
    references_.resize(capacity, 0);
    std::vector<int32_t> added;
    for (int64_t block = capacity - 1; block >= old; --block) added.push_back(static_cast<int32_t>(block));
    free_.insert(free_.begin(), added.begin(), added.end());  // blocks that were used before are taken first
}

int32_t KVBlocks::take() {
    const int32_t block = free_.back();
    free_.pop_back();
    references_[block] = 1;
    return block;
}

bool KVBlocks::extend(std::vector<int32_t>& table, int64_t num_tokens) {
    const int64_t missing = blocks_for(num_tokens) - static_cast<int64_t>(table.size());
    if (missing > num_free()) return false;
    for (int64_t i = 0; i < missing; ++i) table.push_back(take());
    return true;
}

bool KVBlocks::fork(const std::vector<int32_t>& table, int64_t num_tokens, std::vector<int32_t>& forked,
                    std::vector<BlockCopy>& copies) {
    const int64_t num_full = num_tokens / block_size_;
    const bool partial = num_tokens % block_size_ != 0;
    if (partial && free_.empty()) return false;
    forked = share(table, num_full * block_size_);
    if (partial) {
        forked.push_back(take());
        if (forked.back() != table[num_full]) copies.push_back({table[num_full], forked.back()});
    }
    return true;
}

std::vector<int32_t> KVBlocks::share(const std::vector<int32_t>& table, int64_t num_tokens) {
    std::vector<int32_t> shared(table.begin(), table.begin() + blocks_for(num_tokens));
    for (const int32_t block : shared) ++references_[block];
    return shared;
}

void KVBlocks::shrink(std::vector<int32_t>& table, int64_t num_tokens) {
    for (int64_t left = static_cast<int64_t>(table.size()) - blocks_for(num_tokens); left > 0; --left) {
        release(table.back());
        table.pop_back();
    }
}

void KVBlocks::release(std::vector<int32_t>& table) { shrink(table, 0); }

void KVBlocks::release(int32_t block) {
    if (--references_[block] == 0) free_.push_back(block);
}

void KVBlocks::exchange(int32_t& block, int32_t other) {
    hold(other);
    release(block);
    block = other;
}

}  // namespace demiurgic
