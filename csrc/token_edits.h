#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "generation_config.h"
#include "kernels/types.h"

namespace demiurgic {

// Steps 1 to 5 of the order of sampling for one sequence: an edit for each token that has one. Kept up to date as tokens
// are appended, and never made anew: the work of an appended token does not grow with the context, but for the earlier
// places of the n-gram that it would complete.
class TokenEdits {
public:
    // `config` is kept by reference.
    TokenEdits(const GenerationConfig& config, const std::vector<int64_t>& prompt);

    // `tokens`, the prompt among them, have got their last one.
    void append(const std::vector<int64_t>& tokens);

    // Distinct tokens, in the order in which they got their edits. An EOS id may lie outside the vocabulary.
    const std::vector<TokenEdit>& all() const { return edits_; }

private:
    enum Ban : uint8_t { for_good = 1, repeats_ngram = 2, ends = 4 };

    // A token that followed a run of n - 1 tokens, and the place before where one followed a run of the same hash.
    struct Follower {
        int64_t position;
        int64_t edit;
        int64_t previous;  // -1: none
    };

    // How often a token stands in the part of the context that each kind of penalty looks at.
    struct Count {
        int32_t in_window = 0;  // for repetition_penalty
        int32_t counted = 0;    // for frequency_penalty and presence_penalty
    };

    TokenEdit& edit_of(int64_t token) { return edits_[index_of(token)]; }
    int64_t index_of(int64_t token);
    bool uses_penalties() const;
    bool end_is_forbidden(int64_t num_tokens) const;
    void set_ends(bool forbidden);
    void see(const std::vector<int64_t>& tokens, int64_t position);
    void count(const std::vector<int64_t>& tokens, int64_t position);
    void penalize(int64_t index);
    void remember_ngram(const std::vector<int64_t>& tokens, int64_t position);
    void ban_repeats(const std::vector<int64_t>& tokens);
    uint64_t hash_before(const std::vector<int64_t>& tokens, int64_t position) const;

    const GenerationConfig& config_;
    const int64_t prompt_length_;
    std::vector<TokenEdit> edits_;
    std::vector<Count> counts_;                   // of each edit
    std::unordered_map<int64_t, int64_t> index_;  // by token
    bool ends_forbidden_ = false;
    std::vector<Follower> followers_;
    std::unordered_map<uint64_t, int64_t> last_follower_;  // by hash of the n - 1 tokens before
    std::vector<int64_t> repeating_;                       // edits that are banned by repeats_ngram now
};

}  // namespace demiurgic
