#include "byte_automaton.h"

namespace demiurgic {

ByteAutomaton::ByteAutomaton(const std::vector<std::string>& strings) {
    make_classes(strings);
    add_node(0);
    for (size_t i = 0; i < strings.size(); ++i) insert(strings[i], static_cast<int64_t>(i));
    link();
}

void ByteAutomaton::make_classes(const std::vector<std::string>& strings) {
    for (const std::string& string : strings) {
        for (const char byte : string) {
            int32_t& number = class_of_[static_cast<unsigned char>(byte)];
            if (number == 0) number = num_classes_++;
        }
    }
}

ByteAutomaton::State ByteAutomaton::add_node(int64_t depth) {
    next_.resize(next_.size() + num_classes_, kStart);
    nodes_.push_back({depth, -1});
    return static_cast<State>(nodes_.size()) - 1;
}

// Of the trie; a next state of kStart means that there is none yet.
void ByteAutomaton::insert(const std::string& string, int64_t index) {
    State state = kStart;
    for (const char byte : string) {
        const size_t edge = static_cast<size_t>(state) * num_classes_ + class_of_[static_cast<unsigned char>(byte)];
        if (next_[edge] == kStart) {
            const State added = add_node(nodes_[state].depth + 1);
            next_[edge] = added;
        }
        state = next_[edge];
    }
    if (nodes_[state].match < 0) nodes_[state].match = index;
}

// Breadth first: the missing edges of a state are those of the state for its longest proper end, which is nearer to the
// start and so complete.
void ByteAutomaton::link() {
    std::vector<State> fallback(nodes_.size(), kStart), queue{kStart};
    for (size_t head = 0; head < queue.size(); ++head) {
        const State state = queue[head];
        if (nodes_[state].match < 0) nodes_[state].match = nodes_[fallback[state]].match;
        for (int32_t number = 0; number < num_classes_; ++number) {
            State& next = next_[static_cast<size_t>(state) * num_classes_ + number];
            const State otherwise =
                state == kStart ? kStart : next_[static_cast<size_t>(fallback[state]) * num_classes_ + number];
            if (next == kStart) {
                next = otherwise;
            } else {
                fallback[next] = otherwise;
                queue.push_back(next);
            }
        }
    }
}

}  // namespace demiurgic
