#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "kernels/decode_loop.h"
#include "scheduler.h"

namespace demiurgic {

// Steps of plain decoding that are launched before the host has read what the steps before them have given. It reads one
// step late, and so learns late that a row has ended: what the step in flight computes of it is surplus, and is discarded.
//
// Nothing has to wait for a surplus step. It writes one position behind those that the row counts as cached, in a block that
// was the row's when it was launched. Should the block be another row's by now, that row's steps come later in the order of the
// device, and each position is written before it is read; in a block that a session keeps, the position is behind those that
// are kept.
class StepsAhead {
public:
    // Steps of `rows`, launched on `loop`. `vocab`: ids of the vocabulary.
    StepsAhead(DecodeLoop& loop, int64_t block_size, int64_t vocab)
        : loop_(loop), block_size_(block_size), vocab_(vocab) {}
    StepsAhead(const StepsAhead&) = delete;
    StepsAhead& operator=(const StepsAhead&) = delete;
    // An exception may leave steps behind; nothing of them counts, and the next plan holds the same work.
    ~StepsAhead() { loop_.drop(); }

    // Whether a step of this work is one that a loop can make: each part one token of a row past its prompt, whose next
    // token follows from what a LoopRow says.
    static bool takes(const std::vector<Work>& work, const DecodeLoop& loop);

    // The first step, or what Scheduler::plan_ahead gave for the one after `newest`.
    void launch(std::vector<Work> work);

    bool any_in_flight() const { return !in_flight_.empty(); }
    const std::vector<Work>& newest() const { return in_flight_.back(); }
    const std::vector<Work>& oldest() const { return in_flight_.front(); }

    // Whether another step may follow the newest one. Else those in flight are to be read and a new object to be made: so
    // few rows are left of those that a step is made for, or a row's blocks have outgrown the loop.
    bool may_go_on() const;

    // The tokens of the oldest step in flight, for which it waits; what `poll`, asked meanwhile, throws leaves here. Without
    // the parts that have turned out to be surplus.
    struct Results {
        std::vector<Work> work;
        std::vector<Sample> samples;
    };
    Results read(const std::function<void()>& poll);

private:
    struct Row {
        const Sequence* sequence;
        size_t num_blocks;  // that the loop knows of
        int64_t limit;
        int64_t num_tokens;  // that it has after the newest step in flight
        bool rests;
    };

    void begin(const std::vector<Work>& work);
    void go_on(const std::vector<Work>& work);
    LoopRow loop_row(const Sequence& sequence) const;
    int64_t limit_of(const Sequence& sequence) const;

    DecodeLoop& loop_;
    const int64_t block_size_, vocab_;
    std::vector<Row> rows_;                    // in the order of the first step, and of the loop
    std::deque<std::vector<Work>> in_flight_;  // the oldest first
};

}  // namespace demiurgic
