#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/step_state.h"

namespace demiurgic {

// A row as a decode loop takes it up: all that is needed to give token after token without the host.
struct LoopRow {
    int64_t id;             // of its sequence, another one for each: what a device knows of its tokens may serve again
    const int64_t* tokens;  // [num_tokens], of which the last one has not gone through the decoder yet
    int64_t num_tokens;
    int64_t first_counted;        // frequency_penalty and presence_penalty look at tokens from this position on
    bool needs_counts;            // of its tokens
    StepSampling options;         // without edits and counts
    std::vector<StepEdit> edits;  // one a token
    std::vector<int32_t> blocks;  // of the cache, in order of position
    int64_t limit;                // tokens at which it rests: see StepState
};

// A device that decodes by itself: a step takes the tokens that the step before it has chosen, which the host need not know
// yet. What is launched runs in the order of the launches, and of everything else that the host asks of the device. Used by
// one thread at a time.
class DecodeLoop {
public:
    virtual ~DecodeLoop() = default;

    // At the same time.
    virtual int64_t most_rows() const = 0;

    // Takes up `rows`, of which it keeps nothing but copies. Nothing is in flight, and the rows before are forgotten.
    virtual void begin(const std::vector<LoopRow>& rows) = 0;

    // Most blocks of a row, until the next begin.
    virtual int64_t most_blocks() const = 0;

    // From the next launch on a row has these blocks, of which it knows the first ones, and this limit. It may have ended, and
    // stays at rest then.
    virtual void extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) = 0;

    // From the next launch on the row takes no part.
    virtual void rest(int64_t row) = 0;

    // One step of all rows that are not at rest: a token each.
    virtual void launch() = 0;

    // Whether the results of the oldest step in flight are there.
    virtual bool arrived() = 0;

    // They are: one a row, in the order of begin. Of a row that took no part, anything but a result at this position.
    virtual std::vector<StepResult> read() = 0;

    // Waits for the end of what is in flight, of which nobody wants the results.
    virtual void drop() = 0;

    // Gives back what memory it holds, until the next begin. Nothing is in flight.
    virtual void forget() = 0;
};

}  // namespace demiurgic
