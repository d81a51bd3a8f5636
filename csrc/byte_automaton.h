#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace demiurgic {

// Finds several strings at once in a text that comes byte by byte, in constant time a byte (Aho and Corasick, "Efficient
// string matching", 1975). Building it takes time and memory of the strings' total length times their distinct bytes.
class ByteAutomaton {
public:
    using State = int32_t;
    static constexpr State kStart = 0;

    // `strings` are not empty.
    explicit ByteAutomaton(const std::vector<std::string>& strings);

    State next(State state, unsigned char byte) const {
        return next_[static_cast<size_t>(state) * num_classes_ + class_of_[byte]];
    }

    // Length of the longest end of the text that begins one of the strings: what may still become a match, or is one.
    int64_t open(State state) const { return nodes_[state].depth; }

    // The longest of the strings that end here, by its place in the list (the first of equal ones); -1: none.
    int64_t match(State state) const { return nodes_[state].match; }

private:
    struct Node {
        int64_t depth = 0;
        int64_t match = -1;
    };

    void make_classes(const std::vector<std::string>& strings);
    void insert(const std::string& string, int64_t index);
    void link();
    State add_node(int64_t depth);

    std::array<int32_t, 256> class_of_{};  // bytes that are in none of the strings share class 0
    int32_t num_classes_ = 1;
    std::vector<State> next_;  // [states, classes]
    std::vector<Node> nodes_;
};

}  // namespace demiurgic
