#pragma once

#include <cstdint>

namespace demiurgic {

// Finds where a fenced block of a Markdown text ends, byte by byte, in constant time a byte. As CommonMark has it: a fence
// is a line of three or more ` or ~, indented by at most three blanks; the opening one may name a language, the closing
// one has the opening one's character at least as often and nothing after it but blanks. One thing more is taken for an
// opening fence, because models write it: a fence that repeats itself at once, as in "``` ```cpp".
class CodeBlockEnd {
public:
    // Reads the next byte. True where it is the line break after a closing fence.
    bool read(char byte);

    // Where the closing fence ended, its line break not included: a number of bytes read.
    int64_t end() const { return end_; }

    // The first so many of the bytes read stay, whatever comes: only blanks after what may be a closing fence may go.
    int64_t settled() const { return inside_ && part_ == Part::after && plain_ ? end_ : num_read_; }

private:
    enum class Part { indent, fence, after, rest };  // of a line

    void read_fence(char byte);
    void read_after(char byte);
    bool end_line();

    int64_t num_read_ = 0;
    int64_t end_ = 0;  // of the fence of this line
    bool inside_ = false;
    char mark_ = 0;       // of the open block's fence
    int64_t length_ = 0;  // of the open block's fence

    Part part_ = Part::indent;
    char line_mark_ = 0;       // of this line's fence
    int64_t line_length_ = 0;  // of this line's fence
    int64_t indent_ = 0;
    bool plain_ = true;     // nothing but blanks after the fence
    int64_t repeated_ = 0;  // marks in a row after the fence, only blanks between
    bool named_ = false;    // something else stands after the fence
    bool broken_ = false;   // a ` after that: inline code, no fence
};

}  // namespace demiurgic
