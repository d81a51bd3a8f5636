#include "prompt_lookup.h"

namespace demiurgic {

size_t PromptLookup::class_of(int64_t length) {
    if (length <= 4) return static_cast<size_t>(length - 2);
    return length <= 8 ? 3 : length <= 16 ? 4 : 5;
}

void PromptLookup::append(const std::vector<int64_t>& tokens) {
    constexpr double weight = 1.0 / 12;
    if (const NgramIndex::Match& match = index_.match(); match.length > 0) {
        double& right = right_[class_of(match.length)];
        right += weight * ((tokens[match.next] == tokens.back() ? 1.0 : 0.0) - right);
    }
    index_.append(tokens);
}

std::vector<double> PromptLookup::chances(int64_t most) const {
    std::vector<double> chances;
    const int64_t length = index_.match().length;
    if (length == 0) return chances;
    double chance = 1;
    for (int64_t i = 0; i < most; ++i) chances.push_back(chance *= right_[class_of(length + i)]);
    return chances;
}

std::vector<int64_t> PromptLookup::drafts(const std::vector<int64_t>& tokens, int64_t count) const {
    std::vector<int64_t> drafts;
    const int64_t next = index_.match().next, size = static_cast<int64_t>(tokens.size());
    for (int64_t i = 0; i < count; ++i) {  // a run that overlaps itself goes on in the drafts: a cycle
        drafts.push_back(next + i < size ? tokens[next + i] : drafts[next + i - size]);
    }
    return drafts;
}

}  // namespace demiurgic
