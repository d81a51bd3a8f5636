#include "function_end.h"

#include <algorithm>

namespace demiurgic {

namespace {

constexpr size_t kLongestWord = 6;  // async, class, def; one more tells a longer word

bool is_blank(char byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\f'; }

bool is_name(char byte) {
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
           byte == '_' || (byte & 0x80) != 0;
}

}  // namespace

bool FunctionEnd::read(char byte) {
    bool ended = false;
    if (in_word_) read_word(byte);
    if (fresh_) ended = begin_line(byte);
    const bool belongs = line_belongs_;
    ++num_read_;
    switch (lexing_) {
        case Lexing::code:
            read_code(byte);
            break;
        case Lexing::comment:
            if (byte == '\n') end_line();
            break;
        case Lexing::quote:
            read_quote(byte);
            break;
        case Lexing::string:
            read_string(byte);
            break;
    }
    if (belongs) end_ = num_read_;
    return ended;
}

// A byte where only blanks have been read of a logical line.
bool FunctionEnd::begin_line(char byte) {
    if (is_blank(byte)) {
        indented_ = true;
        return false;
    }
    if (byte == '\n') return false;
    fresh_ = false;
    if (indented_) {
        line_belongs_ = scope_ == Scope::inside;
        return false;
    }
    return byte != '#' && first_column(byte);
}

// Code in the first column: the definition before it has ended, and another may begin.
bool FunctionEnd::first_column(char byte) {
    const bool ended = scope_ == Scope::inside;
    if (ended) scope_ = Scope::outside;
    if (byte == '@') {
        scope_ = Scope::decorated;
    } else if (is_name(byte)) {
        in_word_ = true;
        word_.assign(1, byte);
    } else {
        scope_ = Scope::outside;
    }
    return ended;
}

// The word in the first column, or the one after `async`, goes on or has ended before `byte`.
void FunctionEnd::read_word(char byte) {
    if (is_name(byte)) {
        if (word_.size() < kLongestWord) word_ += byte;
        return;
    }
    if (is_blank(byte) && (word_ == "async" || word_.empty())) {
        word_.clear();
        return;
    }
    in_word_ = false;
    const bool defines = word_ == "def" || word_ == "class";
    scope_ = defines ? Scope::inside : Scope::outside;
    line_belongs_ = defines;
}

void FunctionEnd::read_code(char byte) {
    const bool continued = escaped_;
    if (!(escaped_ && byte == '\r')) escaped_ = byte == '\\';
    if (byte == '#') {
        lexing_ = Lexing::comment;
    } else if (byte == '"' || byte == '\'') {
        lexing_ = Lexing::quote;
        quote_ = byte;
        quotes_ = 1;
    } else if (byte == '(' || byte == '[' || byte == '{') {
        ++depth_;
    } else if (byte == ')' || byte == ']' || byte == '}') {
        depth_ = std::max<int64_t>(depth_ - 1, 0);
    }
    if (byte == '\n' && !continued) end_line();
}

// After one or two quotes: two are an empty string, three begin one of several lines.
void FunctionEnd::read_quote(char byte) {
    if (byte == quote_) {
        if (++quotes_ < 3) return;
        quotes_ = 0;
        triple_ = true;
        lexing_ = Lexing::string;
    } else if (quotes_ == 2) {
        lexing_ = Lexing::code;
        read_code(byte);
    } else {
        triple_ = false;
        lexing_ = Lexing::string;
        read_string(byte);
    }
}

void FunctionEnd::read_string(char byte) {
    if (escaped_) {
        escaped_ = byte == '\r';  // a line break of two bytes is escaped as a whole
        return;
    }
    escaped_ = byte == '\\';
    quotes_ = byte == quote_ ? quotes_ + 1 : 0;
    if (quotes_ == (triple_ ? 3 : 1)) {
        lexing_ = Lexing::code;
    } else if (byte == '\n' && !triple_) {
        end_line();
    }
}

void FunctionEnd::end_line() {
    lexing_ = Lexing::code;
    escaped_ = false;
    if (depth_ > 0) return;
    fresh_ = true;
    indented_ = false;
    line_belongs_ = false;
}

}  // namespace demiurgic
