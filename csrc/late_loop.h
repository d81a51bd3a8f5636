#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "decoder.h"
#include "kernels/decode_loop.h"
#include "kernels/token_counts.h"

namespace demiurgic {

// Steps ahead by the entries of the kernel table, for a device that works on its own but has no loop of its own, as MPS. What
// the host cannot know when it launches a step, the rows' last tokens and the counts of their tokens, stays on the device.
// Positions, blocks, options and random numbers it knows, and sends along; nobody waits for these copies, nor for that of
// the results until they are read. That a row has ended the device does not look at: it is surplus until the host knows.
// On the CPU, where it is no faster than simple steps, it serves the tests.
class LateLoop : public DecodeLoop {
public:
    // `stream`: the one that is current whenever it is used.
    LateLoop(Decoder& decoder, KVCache& cache, int64_t block_size, int64_t vocab, c10::Stream stream)
        : decoder_(decoder), cache_(cache), block_size_(block_size), vocab_(vocab), stream_(stream) {}

    int64_t most_rows() const override { return 256; }
    int64_t most_blocks() const override { return INT32_MAX; }
    void begin(const std::vector<LoopRow>& rows) override;
    void extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) override;
    void rest(int64_t row) override { rows_[static_cast<size_t>(row)].rests = true; }
    void launch() override;
    bool arrived() override { return !flights_.front().end || flights_.front().end->query(); }
    std::vector<StepResult> read() override;
    void drop() override;
    void forget() override;

private:
    struct Row {
        StepSampling options;
        std::vector<StepEdit> edits;
        std::unique_ptr<Sequence> sequence;  // its length and blocks; in place of its tokens stand zeros
        int64_t limit;
        bool rests = false;
    };

    // A step, until its results are read.
    struct Flight {
        std::vector<size_t> rows;                      // that get a token
        std::vector<int64_t> positions;                // of these tokens
        at::Tensor token, logprob, processed_logprob;  // on the host, there after `end`
        std::vector<at::Tensor> kept;                  // what copies read that nobody has waited for
        std::optional<c10::Event> end;                 // nullopt: the device is the host
    };

    void choose_rows(Flight& flight);
    void step(Flight& flight);
    std::vector<TokenEdit> edits_of(const Row& row) const;

    Decoder& decoder_;
    KVCache& cache_;
    const int64_t block_size_, vocab_;
    const c10::Stream stream_;
    std::vector<Row> rows_;
    std::vector<size_t> live_;      // the R rows that the newest step has, or that begin took up
    at::Tensor tokens_;             // [R] int64, their last ones
    TokenCounts counts_;            // of their tokens
    std::vector<at::Tensor> kept_;  // as in Flight, of begin
    std::deque<Flight> flights_;    // the oldest first
};

}  // namespace demiurgic
