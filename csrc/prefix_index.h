#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kv_blocks.h"

namespace demiurgic {

// The computed prefixes that a session keeps: which tokens each kept cache block stands for, after which others. A tree
// of blocks, as in RadixAttention (Zheng et al., "SGLang", arXiv:2312.07104): a path from the root is a prefix. A block
// below the end of a path may be partly filled. Tokens themselves are compared, not hashes of them. Bookkeeping only.
class PrefixIndex {
public:
    explicit PrefixIndex(KVBlocks& blocks) : blocks_(blocks) {}
    PrefixIndex(const PrefixIndex&) = delete;
    PrefixIndex& operator=(const PrefixIndex&) = delete;
    ~PrefixIndex() { clear(); }

    // A computed prefix: the blocks of its tokens, of which the last may be used in part.
    struct Prefix {
        std::vector<int32_t> blocks;
        int64_t num_tokens = 0;
    };

    // The longest kept prefix of the first `limit` of `tokens`, which is used now.
    Prefix find(const std::vector<int64_t>& tokens, int64_t limit);

    // Keeps the first `num_tokens` of `tokens`, whose keys and values are in `table`, and which are used now. Where full
    // blocks of the same tokens are kept already, `table` gets those and lets its own go: so whoever holds a kept block
    // holds all before it, and blocks that only this index holds can be evicted from the ends of paths.
    void keep(const std::vector<int64_t>& tokens, int64_t num_tokens, std::vector<int32_t>& table);

    // Frees the block, among those that nobody else holds, that was used least recently. False where there is none.
    bool evict();

    // Forgets everything. What was computed before must not be kept afterwards: `epoch` tells the two apart.
    void clear();

    int64_t epoch() const { return epoch_; }
    int64_t num_blocks() const { return num_blocks_; }
    int64_t num_tokens() const { return num_tokens_; }
    int64_t num_evicted() const { return num_evicted_; }  // blocks, so far

private:
    using Tokens = std::vector<int64_t>;
    struct Node {
        Node* parent = nullptr;
        const Tokens* tokens = nullptr;  // its key among the parent's children: as many as a block holds, or fewer
        int32_t block = -1;
        int64_t last_used = 0;
        // Fewer tokens than a block holds have no children, and no key begins another.
        std::map<Tokens, std::unique_ptr<Node>> children;
    };

    Node& add(Node& parent, const Tokens& tokens, int32_t block);
    void remove(Node& leaf);
    void use(Node& node);

    KVBlocks& blocks_;
    Node root_;
    std::set<std::pair<int64_t, Node*>> leaves_;  // by last use, the oldest first
    int64_t clock_ = 0;
    int64_t epoch_ = 0;
    int64_t num_blocks_ = 0;
    int64_t num_tokens_ = 0;
    int64_t num_evicted_ = 0;
};

}  // namespace demiurgic
