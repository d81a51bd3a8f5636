#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace demiurgic {

// How the tokens of a vocabulary spell bytes.
enum class TokenSpelling {
    byte_level,     // GPT-2: each byte of the text is written as a printable character
    pieces,         // SentencePiece: U+2581 is a blank
    byte_fallback,  // the same, and <0x0A> is one byte
    raw,            // tiktoken: the bytes themselves
};

// What a text loses at its very beginning when it is decoded, because the tokenizer put a blank there.
enum class LeadingBlank {
    kept,
    one_dropped,    // SentencePiece's "Strip"
    token_dropped,  // SentencePiece's "Metaspace": all blanks of the first token
};

// The bytes that each token of a vocabulary stands for. They follow each other in the text, whatever the tokens.
class TokenBytes {
public:
    // `tokens`: as the vocabulary spells them, by id; "" for an id that there is not. Tokens of `special` ids stand for
    // no text, as where decoding skips special tokens.
    TokenBytes(const std::vector<std::string>& tokens, const std::vector<int64_t>& special, TokenSpelling spelling,
               LeadingBlank leading_blank);

    // Of an id outside the vocabulary: none.
    std::string_view of(int64_t token) const;

    // The same for a token that begins a text.
    std::string_view of_first(int64_t token) const;

    // Number of ids.
    int64_t size() const { return static_cast<int64_t>(ends_.size()); }

private:
    std::string bytes_;          // of all tokens, one after the other
    std::vector<int64_t> ends_;  // of each token's bytes
    const LeadingBlank leading_blank_;
};

}  // namespace demiurgic
