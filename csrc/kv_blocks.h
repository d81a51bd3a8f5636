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
//
// A table's blocks follow each other in the cache as far as that can be had, so that attention may read them as one piece:
// a table that says how long it may become is promised the blocks behind its own, and others start elsewhere while there
// is room elsewhere. The lowest place is taken first, so that memory in use stays small.
class KVBlocks {
public:
    explicit KVBlocks(int64_t block_size) : block_size_(block_size) {}

    int64_t block_size() const { return block_size_; }
    int64_t capacity() const { return static_cast<int64_t>(references_.size()); }
    int64_t num_free() const { return num_free_; }
    int64_t num_used() const { return capacity() - num_free(); }
    int64_t blocks_for(int64_t num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }

    // Forgets all blocks, of which none is in use.
    void clear();

    // Adds free blocks until there are `capacity`; never removes any.
    void grow(int64_t capacity);

    // Gives `table` new blocks until it holds `num_tokens`; `most_tokens` is what it may grow to. False, with nothing
    // changed, if too few are free.
    bool extend(std::vector<int32_t>& table, int64_t num_tokens, int64_t most_tokens = 0);

    // Lets go of the blocks of `table` behind those that hold its first `num_tokens`. It may grow into them again.
    void shrink(std::vector<int32_t>& table, int64_t num_tokens);

    // A second table over the first `num_tokens` of `table`, which may grow to `most_tokens`: full blocks are shared; a
    // last, partly filled one is a new block, and `copies` says what to copy into it. False, with nothing changed, if no
    // block is free for it. The block that is copied may be free already: nothing is written to it before the copy is made.
    bool fork(const std::vector<int32_t>& table, int64_t num_tokens, std::vector<int32_t>& forked,
              std::vector<BlockCopy>& copies, int64_t most_tokens = 0);

    // Another reference to the blocks that hold the first `num_tokens` of `table`, the last one included; and its end,
    // which leaves alone what the table was promised.
    std::vector<int32_t> share(const std::vector<int32_t>& table, int64_t num_tokens);
    void unshare(std::vector<int32_t>& shared);

    // Lets go of every block of `table`, and of what it was promised, and empties it.
    void release(std::vector<int32_t>& table);

    // The same for one block in use: another reference, one fewer, one for `other` in its place, how many there are.
    void hold(int32_t block) { ++references_[block]; }
    void release(int32_t block);
    void exchange(int32_t& block, int32_t other);
    int32_t num_references(int32_t block) const { return references_[block]; }

private:
    void take(std::vector<int32_t>& table, int64_t most_tokens);
    bool is_free(int64_t block) const { return block < capacity() && references_[block] == 0; }
    int64_t start_of_run(int64_t num_blocks) const;
    void promise(int64_t first, int64_t num_blocks);
    int64_t withdraw(int64_t first);

    int64_t block_size_;
    std::vector<int32_t> references_;  // by block; 0: free
    std::vector<bool> promised_;       // by block: it is free, and the table that ends before it is to have it
    int64_t num_free_ = 0;
};

}  // namespace demiurgic
