#pragma once

#include <cstdint>
#include <vector>

namespace demiurgic {

// "The content of block `from` is to be copied into block `to`", for all layers.
struct BlockCopy {
    int32_t from;
    int32_t to;
};

// Which block of the cache belongs to whom. A block holds the keys and values of `block_size` consecutive positions of
// one sequence, or of several that share a prefix; it is free again when the last of them lets it go. Bookkeeping only.
class KVBlocks {
public:
    explicit KVBlocks(int64_t block_size) : block_size_(block_size) {}

    int64_t block_size() const { return block_size_; }
    int64_t capacity() const { return static_cast<int64_t>(references_.size()); }
    int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
    int64_t num_used() const { return capacity() - num_free(); }
    int64_t blocks_for(int64_t num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }

    // Forgets all blocks, of which none is in use.
    void clear();

    // Adds free blocks until there are `capacity`; never removes any.
    void grow(int64_t capacity);

    // Gives `table` new blocks until it holds `num_tokens`. False, with nothing changed, if too few are free.
    bool extend(std::vector<int32_t>& table, int64_t num_tokens);

    // Lets go of the blocks of `table` behind those that hold its first `num_tokens`.
    void shrink(std::vector<int32_t>& table, int64_t num_tokens);

    // A second table over the first `num_tokens` of `table`: full blocks are shared; a last, partly filled one is a new
    // block, and `copies` says what to copy into it. False, with nothing changed, if no block is free for it. The block
    // that is copied may be free already: nothing is written to it before the copy is made.
    bool fork(const std::vector<int32_t>& table, int64_t num_tokens, std::vector<int32_t>& forked,
              std::vector<BlockCopy>& copies);

    // Another reference to the blocks that hold the first `num_tokens` of `table`, the last one included.
    std::vector<int32_t> share(const std::vector<int32_t>& table, int64_t num_tokens);

    // Lets go of every block of `table` and empties it.
    void release(std::vector<int32_t>& table);

    // The same for one block in use: another reference, one fewer, one for `other` in its place, how many there are.
    void hold(int32_t block) { ++references_[block]; }
    void release(int32_t block);
    void exchange(int32_t& block, int32_t other);
    int32_t num_references(int32_t block) const { return references_[block]; }

private:
    int32_t take();

    int64_t block_size_;
    std::vector<int32_t> references_;  // by block; 0: free
    std::vector<int32_t> free_;        // the last freed is the next taken, so that memory in use stays small
};

}  // namespace demiurgic
