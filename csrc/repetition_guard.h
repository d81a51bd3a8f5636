#pragma once

#include <cstdint>
#include <vector>

namespace demiurgic {

// Finds an exact cycle at the end of a growing row of tokens: the last `copies` times `period` tokens are one run of
// `period` tokens again and again. For every period it counts how many of the last tokens equal those a period before.
// The work for a token is that of comparing it with those before it, as many as the longest period, in one pass.
class RepetitionGuard {
public:
    static constexpr int64_t kLongestPeriod = 1024;

    // A cycle counts where it stands `min_copies` times or more (at least 2), a part of a copy not counted, and has
    // `min_tokens` tokens or more, the first copy and the part included. `most_tokens`: that the row can have.
    RepetitionGuard(int64_t min_copies, int64_t min_tokens, int64_t most_tokens);

    // `token` is the row's next.
    void append(int64_t token);

    // The shortest period of which the row ends in a cycle that counts; 0: none.
    int64_t period() const { return period_; }

    // Tokens at the end of the row that repeat what stands a period before them, by that cycle; 0 where there is none.
    int64_t num_repeated() const;

    // Tokens at the end of the row that would repeat others if they went on so, by any period.
    int64_t longest_run() const;

private:
    void begin();

    const int64_t min_copies_;
    const int64_t min_tokens_;
    const int64_t num_periods_;  // the longest that can count
    int64_t period_ = 0;
    // Empty before the first token: rows that wait need no memory.
    std::vector<int32_t> tokens_;  // num_periods_ times -1, then the row
    // Periods from the longest down to 1, so that they lie as the tokens do that they are compared with.
    std::vector<int32_t> runs_;    // how many of the last tokens equal those a period before
    std::vector<int32_t> enough_;  // how many count
};

}  // namespace demiurgic
