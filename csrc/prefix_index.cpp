#include "prefix_index.h"

#include <algorithm>
#include <iterator>

namespace demiurgic {

namespace {

int64_t num_common(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
    return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

bool begins_with(const std::vector<int64_t>& tokens, const std::vector<int64_t>& first) {
    return num_common(tokens, first) == static_cast<int64_t>(first.size());
}

}  // namespace

PrefixIndex::Prefix PrefixIndex::find(const std::vector<int64_t>& tokens, int64_t limit) {
    Prefix prefix;
    Node* node = &root_;
    ++clock_;
    while (prefix.num_tokens < limit) {
        const auto begin = tokens.begin() + prefix.num_tokens;
        const Tokens wanted(begin, begin + std::min(blocks_.block_size(), limit - prefix.num_tokens));
        // In their order, whoever has most in common with `wanted` stands beside its place.
        const auto next = node->children.lower_bound(wanted);
        int64_t most = 0;
        Node* best = nullptr;
        for (auto it : {next, next == node->children.begin() ? next : std::prev(next)}) {
            if (it == node->children.end() || num_common(it->first, wanted) <= most) continue;
            most = num_common(it->first, wanted);
            best = it->second.get();
        }
        if (!best) break;
        use(*best);
        prefix.blocks.push_back(best->block);
        prefix.num_tokens += most;
        if (most < blocks_.block_size()) break;
        node = best;
    }
    return prefix;
}

void PrefixIndex::keep(const std::vector<int64_t>& tokens, int64_t num_tokens, std::vector<int32_t>& table) {
    Node* node = &root_;
    ++clock_;
    for (int64_t first = 0; first < num_tokens; first += blocks_.block_size()) {
        const Tokens given(tokens.begin() + first, tokens.begin() + std::min(first + blocks_.block_size(), num_tokens));
        int32_t& block = table[first / blocks_.block_size()];
        const auto next = node->children.lower_bound(given);
        if (next != node->children.end() && begins_with(next->first, given)) {
            const bool full = given == next->first;
            node = next->second.get();
            use(*node);
            if (full && block != node->block) blocks_.exchange(block, node->block);
            continue;
        }
        // Fewer tokens that these continue are held in vain.
        if (next != node->children.begin() && begins_with(given, std::prev(next)->first)) {
            remove(*std::prev(next)->second);
        }
        node = &add(*node, given, block);
    }
}

bool PrefixIndex::evict() {
    const auto oldest = std::find_if(leaves_.begin(), leaves_.end(), [this](const auto& leaf) {
        return blocks_.num_references(leaf.second->block) == 1;
    });
    if (oldest == leaves_.end()) return false;
    remove(*oldest->second);
    ++num_evicted_;
    return true;
}

void PrefixIndex::clear() {
    while (!leaves_.empty())
        remove(*leaves_.begin()->second);  // from the ends: no recursion as deep as a context is long
    ++epoch_;
}

PrefixIndex::Node& PrefixIndex::add(Node& parent, const Tokens& tokens, int32_t block) {
    const auto added = parent.children.emplace(tokens, std::make_unique<Node>()).first;
    Node& node = *added->second;
    node.parent = &parent;
    node.tokens = &added->first;
    node.block = block;
    node.last_used = clock_;
    blocks_.hold(block);
    leaves_.erase({parent.last_used, &parent});
    leaves_.insert({clock_, &node});
    ++num_blocks_;
    num_tokens_ += static_cast<int64_t>(tokens.size());
    return node;
}

void PrefixIndex::remove(Node& leaf) {
    Node& parent = *leaf.parent;
    leaves_.erase({leaf.last_used, &leaf});
    blocks_.release(leaf.block);
    --num_blocks_;
    num_tokens_ -= static_cast<int64_t>(leaf.tokens->size());
    parent.children.erase(parent.children.find(*leaf.tokens));
    if (parent.children.empty() && &parent != &root_) leaves_.insert({parent.last_used, &parent});
}

void PrefixIndex::use(Node& node) {
    const bool is_leaf = leaves_.erase({node.last_used, &node}) > 0;
    node.last_used = clock_;
    if (is_leaf) leaves_.insert({clock_, &node});
}

}  // namespace demiurgic
