#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace demiurgic {

// Where the last tokens of a growing sequence stood before (prompt lookup; Saxena, 2023). Of the earlier places it finds the
// one that agrees in the longest run, the most recent of equally long ones. The work of an appended token does not grow
// with the sequence: of many places where a short run stands it looks at the kMostCandidates last ones.
class NgramIndex {
public:
    static constexpr int64_t kMostCandidates = 16;
    static constexpr int64_t kLongestCompared = 64;

    struct Match {
        int64_t next = 0;    // the position of the token that followed the run
        int64_t length = 0;  // of the run; 0: there is none of two tokens or more
    };

    explicit NgramIndex(const std::vector<int64_t>& tokens);

    // `tokens` have got their last one.
    void append(const std::vector<int64_t>& tokens);

    const Match& match() const { return match_; }

private:
    // Runs of n tokens: by their hash the position behind the last of them, and by position the one before.
    struct Runs {
        int64_t n;
        std::unordered_map<uint64_t, int64_t> last = {};
        std::vector<int64_t> previous = {};  // -1: none
    };

    void see(const std::vector<int64_t>& tokens, int64_t end);
    Match longest(const Runs& runs, const std::vector<int64_t>& tokens, int64_t end) const;

    std::array<Runs, 2> runs_ = {Runs{8}, Runs{2}};  // the longer first
    Match match_;
};

}  // namespace demiurgic
