#include "ngram_index.h"

#include <algorithm>

namespace demiurgic {

namespace {

// Of the n tokens before `end` (FNV-1a over whole tokens).
uint64_t hash_of(const std::vector<int64_t>& tokens, int64_t end, int64_t n) {
    uint64_t hash = 0xcbf29ce484222325;
    for (int64_t i = end - n; i < end; ++i) hash = (hash ^ static_cast<uint64_t>(tokens[i])) * 0x100000001b3;
    return hash;
}

// How many tokens before `a` and before `b` are the same; a < b.
int64_t common_run(const std::vector<int64_t>& tokens, int64_t a, int64_t b) {
    const int64_t most = std::min(a, NgramIndex::kLongestCompared);
    int64_t length = 0;
    while (length < most && tokens[a - 1 - length] == tokens[b - 1 - length]) ++length;
    return length;
}

}  // namespace

NgramIndex::NgramIndex(const std::vector<int64_t>& tokens) {
    for (int64_t end = 1; end <= static_cast<int64_t>(tokens.size()); ++end) see(tokens, end);
}

void NgramIndex::append(const std::vector<int64_t>& tokens) { see(tokens, static_cast<int64_t>(tokens.size())); }

void NgramIndex::see(const std::vector<int64_t>& tokens, int64_t end) {
    // What was the longest run is so still where its next token came: any other can have grown by one token as well.
    if (match_.length > 0 && tokens[match_.next] == tokens[end - 1]) {
        match_ = {match_.next + 1, match_.length + 1};
    } else {
        match_ = {};
        for (const Runs& runs : runs_) {
            if (match_.length == 0) match_ = longest(runs, tokens, end);
        }
    }
    for (Runs& runs : runs_) {
        runs.previous.resize(end + 1, -1);
        if (end < runs.n) continue;
        const auto [last, is_new] = runs.last.try_emplace(hash_of(tokens, end, runs.n), -1);
        runs.previous[end] = last->second;
        last->second = end;
    }
}

NgramIndex::Match NgramIndex::longest(const Runs& runs, const std::vector<int64_t>& tokens, int64_t end) const {
    Match best;
    if (end < runs.n) return best;
    const auto found = runs.last.find(hash_of(tokens, end, runs.n));
    if (found == runs.last.end()) return best;
    int64_t place = found->second;
    for (int64_t i = 0; i < kMostCandidates && place >= 0 && best.length < kLongestCompared; ++i) {
        const int64_t length = common_run(tokens, place, end);
        if (length >= runs.n && length > best.length) best = {place, length};
        place = runs.previous[place];
    }
    return best;
}

}  // namespace demiurgic
