#include "code_block_end.h"

namespace demiurgic {

namespace {

constexpr int64_t kShortestFence = 3;
constexpr int64_t kMostIndent = 3;

bool is_blank(char byte) { return byte == ' ' || byte == '\t' || byte == '\r'; }

}  // namespace

bool CodeBlockEnd::read(char byte) {
    ++num_read_;
    if (byte == '\n') return end_line();
    switch (part_) {
        case Part::indent:
            if (byte == ' ' && indent_ < kMostIndent) {
                ++indent_;
            } else if (byte == '`' || byte == '~') {
                part_ = Part::fence;
                line_mark_ = byte;
                read_fence(byte);
            } else {
                part_ = Part::rest;
            }
            break;
        case Part::fence:
            read_fence(byte);
            break;
        case Part::after:
            read_after(byte);
            break;
        case Part::rest:
            break;
    }
    return false;
}

void CodeBlockEnd::read_fence(char byte) {
    if (byte == line_mark_) {
        ++line_length_;
        end_ = num_read_;
        return;
    }
    const bool closes = inside_ && line_mark_ == mark_ && line_length_ >= length_;
    part_ = closes || (!inside_ && line_length_ >= kShortestFence) ? Part::after : Part::rest;
    if (part_ == Part::after) read_after(byte);
}

void CodeBlockEnd::read_after(char byte) {
    if (is_blank(byte)) {
        if (repeated_ > 0 && repeated_ < kShortestFence) broken_ = true;
        if (!named_) repeated_ = 0;
        return;
    }
    plain_ = false;
    if (byte == line_mark_ && !named_) {
        ++repeated_;
        return;
    }
    if (repeated_ > 0 && repeated_ < kShortestFence) broken_ = true;
    repeated_ = 0;
    named_ = true;
    if (byte == '`' && line_mark_ == '`') broken_ = true;
}

// Of this line: whether it closes the block; it may open one.
bool CodeBlockEnd::end_line() {
    const bool fence = part_ == Part::fence || part_ == Part::after;
    const bool cut_short = repeated_ > 0 && repeated_ < kShortestFence;
    bool closed = false;
    if (inside_) {
        closed = fence && plain_ && line_mark_ == mark_ && line_length_ >= length_;
        inside_ = !closed;
    } else if (fence && line_length_ >= kShortestFence && !broken_ && !cut_short) {
        inside_ = true;
        mark_ = line_mark_;
        length_ = line_length_;
    }
    part_ = Part::indent;
    line_length_ = indent_ = repeated_ = 0;
    plain_ = true;
    named_ = broken_ = false;
    return closed;
}

}  // namespace demiurgic
