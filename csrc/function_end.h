#pragma once

#include <cstdint>
#include <string>

namespace demiurgic {

// Finds where a top-level definition of a Python text ends, byte by byte, in constant time a byte.
//
// A definition begins with a line whose first column holds `def`, `async def` or `class`; what is indented below it
// belongs to it, and so do the lines of a bracket or of a triple-quoted string that it opens, and lines after a
// backslash. It ends with the last line that belongs to it; that it has ended is seen at the next first column with
// anything but a blank line or a comment. Blank lines and comments in the first column belong to it only where indented
// lines follow. Decorators belong to the definition after them.
//
// Quotes and brackets are read as Python reads them, with two exceptions: a string of one line that is not closed ends
// with its line, and the same quote inside the braces of an f-string (Python 3.12) ends the string. A bracket or a
// triple-quoted string that is never closed keeps the definition open.
class FunctionEnd {
public:
    // Reads the next byte. True where it is the first after the end of a definition.
    bool read(char byte);

    // Where the definition ended, or would end if nothing more of it came: a number of bytes read.
    int64_t end() const { return end_; }

    // The first so many of the bytes read stay, whatever comes.
    int64_t settled() const { return scope_ == Scope::inside && !line_belongs_ ? end_ : num_read_; }

private:
    enum class Lexing { code, comment, quote, string };
    enum class Scope { outside, decorated, inside };

    bool begin_line(char byte);
    bool first_column(char byte);
    void read_word(char byte);
    void read_code(char byte);
    void read_quote(char byte);
    void read_string(char byte);
    void end_line();

    int64_t num_read_ = 0;
    int64_t end_ = 0;
    Scope scope_ = Scope::outside;
    Lexing lexing_ = Lexing::code;
    char quote_ = 0;         // of the string that is open
    int quotes_ = 0;         // the same quotes that were read last
    bool triple_ = false;    // the string is triple-quoted
    bool escaped_ = false;   // a backslash was read last
    int64_t depth_ = 0;      // of brackets
    bool fresh_ = true;      // at the beginning of a logical line, nothing but blanks read
    bool indented_ = false;  // blanks were read there
    bool line_belongs_ = false;
    bool in_word_ = false;  // the first word of a line, in the first column
    std::string word_;
};

}  // namespace demiurgic
