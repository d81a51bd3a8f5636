#include "token_bytes.h"

#include <algorithm>
#include <array>

namespace demiurgic {

namespace {

// The byte that a character of a GPT-2 vocabulary stands for, by code point; -1: none. Bytes that are printable in
// Latin-1 stand for themselves, the others are numbered from U+0100 on.
std::array<int16_t, 324> make_byte_of_character() {
    std::array<int16_t, 324> byte_of;
    byte_of.fill(-1);
    int16_t next = 256;
    for (int16_t byte = 0; byte < 256; ++byte) {
        const bool printable =
            (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
        byte_of[printable ? byte : next++] = byte;
    }
    return byte_of;
}

// Appends what a byte-level token stands for. A token with a character that is none of the 256, as added ones may have,
// stands for itself.
void append_byte_level(const std::string& token, std::string& bytes) {
    static const std::array<int16_t, 324> byte_of = make_byte_of_character();
    const size_t begin = bytes.size();
    for (size_t i = 0; i < token.size();) {
        const unsigned char lead = static_cast<unsigned char>(token[i]);
        const bool two = lead >= 0xC0 && lead < 0xE0 && i + 1 < token.size();  // U+0143 is the largest that counts
        const size_t character = two ? (lead & 0x1Fu) << 6 | (static_cast<unsigned char>(token[i + 1]) & 0x3Fu) : lead;
        if (lead >= 0xE0 || character >= byte_of.size() || byte_of[character] < 0) {
            bytes.resize(begin);
            bytes += token;
            return;
        }
        bytes += static_cast<char>(byte_of[character]);
        i += two ? 2 : 1;
    }
}

int hex_digit(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    return -1;
}

void append_piece(const std::string& token, bool byte_fallback, std::string& bytes) {
    if (byte_fallback && token.size() == 6 && token.starts_with("<0x") && token[5] == '>' && hex_digit(token[3]) >= 0 &&
        hex_digit(token[4]) >= 0) {
        bytes += static_cast<char>(hex_digit(token[3]) * 16 + hex_digit(token[4]));
        return;
    }
    constexpr std::string_view blank = "\u2581";
    for (size_t i = 0; i < token.size();) {
        const bool is_blank = token.compare(i, blank.size(), blank) == 0;
        bytes += is_blank ? ' ' : token[i];
        i += is_blank ? blank.size() : 1;
    }
}

}  // namespace

TokenBytes::TokenBytes(const std::vector<std::string>& tokens, const std::vector<int64_t>& special,
                       TokenSpelling spelling, LeadingBlank leading_blank)
    : leading_blank_(leading_blank) {
    std::vector<bool> is_special(tokens.size());
    for (const int64_t id : special) {
        if (id >= 0 && id < static_cast<int64_t>(tokens.size())) is_special[id] = true;
    }
    ends_.reserve(tokens.size());
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (!is_special[id]) {
            switch (spelling) {
                case TokenSpelling::byte_level:
                    append_byte_level(tokens[id], bytes_);
                    break;
                case TokenSpelling::pieces:
                case TokenSpelling::byte_fallback:
                    append_piece(tokens[id], spelling == TokenSpelling::byte_fallback, bytes_);
                    break;
                case TokenSpelling::raw:
                    bytes_ += tokens[id];
                    break;
            }
        }
        ends_.push_back(static_cast<int64_t>(bytes_.size()));
    }
}

std::string_view TokenBytes::of(int64_t token) const {
    if (token < 0 || token >= size()) return {};
    const int64_t begin = token == 0 ? 0 : ends_[token - 1];
    return std::string_view(bytes_).substr(begin, ends_[token] - begin);
}

std::string_view TokenBytes::of_first(int64_t token) const {
    std::string_view bytes = of(token);
    const size_t blanks = std::min(bytes.find_first_not_of(' '), bytes.size());
    if (leading_blank_ == LeadingBlank::one_dropped) bytes.remove_prefix(std::min<size_t>(blanks, 1));
    if (leading_blank_ == LeadingBlank::token_dropped) bytes.remove_prefix(blanks);
    return bytes;
}

}  // namespace demiurgic
