#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "byte_automaton.h"
#include "code_block_end.h"
#include "function_end.h"
#include "generation_config.h"
#include "token_bytes.h"

namespace demiurgic {

// What the texts of all rows of a call share.
struct TextRules {
    TextRules(std::shared_ptr<const TokenBytes> bytes, std::shared_ptr<const GenerationConfig> options);

    const std::shared_ptr<const TokenBytes> token_bytes;
    const std::shared_ptr<const GenerationConfig> config;
    const ByteAutomaton stops;
};

// The text that a row's generated tokens stand for, as bytes, and where it ends by `stop` or `stop_at`. Tokens come as
// they are generated; what is found depends on the bytes alone, not on how they are cut into tokens.
//
// Of several matches the one that begins first counts, of those the one that ends first. So where a match is inside of
// what may become an earlier one, the row goes on until that is known; if it ends before, the match that there is counts.
class RowText {
public:
    // Of the row's prompt only `stop_at` looks at the text, and the blank that a tokenizer drops at a text's beginning.
    RowText(std::shared_ptr<const TextRules> rules, const std::vector<int64_t>& prompt);

    // `token` is the next one of the row, which has not ended.
    void append(int64_t token);

    // A match is known to be the one that counts.
    bool ended() const { return ended_; }

    // There is a match: the row ends by it if it ends now.
    bool has_match() const { return match_.has_value(); }

    // What the match is of: a place in `stop`, or -1 for `stop_at`.
    int64_t matched_stop() const { return match_->stop; }

    // Ends the row by the match: the text ends before it, or with it for `include_stop`. Returns how many tokens stay:
    // those that lie wholly before the match, or all that have a part of the text.
    int64_t cut();

    // Ends the row after its first so many tokens.
    void keep(int64_t num_tokens) { end_after(num_tokens, end_of(num_tokens)); }

    // Bytes of the text of the first so many tokens.
    int64_t end_of(int64_t num_tokens) const { return num_tokens == 0 ? 0 : ends_[num_tokens - 1]; }

    // So many of the generated tokens, and bytes of their text, stay, whatever comes.
    int64_t settled_tokens() const;
    int64_t settled_bytes() const;

    const std::string& text() const { return text_; }

private:
    struct Match {
        int64_t begin;
        int64_t end;
        int64_t stop;
    };

    void end_after(int64_t num_tokens, int64_t num_bytes);
    void read_stop_at(char byte);
    void propose(Match match);

    const std::shared_ptr<const TextRules> rules_;
    const int64_t num_held_;  // tokens at the beginning in which no match may lie, by min_new_tokens and min_length
    bool is_first_;           // the row has no text yet
    int64_t prompt_bytes_ = 0;
    std::string text_;
    std::vector<int64_t> ends_;  // in text_, of each token
    int64_t held_bytes_ = 0;
    ByteAutomaton::State state_ = ByteAutomaton::kStart;
    std::variant<std::monostate, FunctionEnd, CodeBlockEnd> stop_at_;
    std::optional<Match> match_;
    bool ended_ = false;
    bool is_cut_ = false;
};

}  // namespace demiurgic
