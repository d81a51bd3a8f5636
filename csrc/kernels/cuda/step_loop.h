#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/step_change.h"
#include "kernels/decode_loop.h"

// What a captured step needs beside its kernels: which graph serves, what has to be on the device before it runs, where its
// results come. Without ATen and CUDA, so that it is tested on the host, with a device that is made up.
namespace demiurgic::cuda {

// What a loop asks of a device. Copies, counts, changes, replays and marks are done in the order in which they are asked for.
class StepDevice {
public:
    virtual ~StepDevice() = default;

    // To be called before rows of up to `most_positions` positions are taken up: notes where the weights and the cache lie
    // now. True where graphs that were captured before are of no use any more.
    virtual bool refresh(int64_t most_positions) = 0;

    // Memory that stays until `forget`; of the host, where the device writes and reads it.
    virtual void* device_memory(int64_t bytes) = 0;
    virtual void* host_memory(int64_t bytes) = 0;

    // Bytes that a step of `rows` rows of up to `most_blocks` blocks works in, beside its state.
    virtual int64_t workspace_bytes(int64_t rows, int64_t most_blocks) = 0;

    // Captures a step of `rows` rows over this state, which works in `workspace`; the number that replay takes.
    virtual int64_t capture(const StepState& state, int64_t rows, void* workspace) = 0;

    // Lets captured graphs and memory go. Nothing is in flight.
    virtual void forget() = 0;

    // `host` is host_memory, and stays as it is until the copy is made.
    virtual void copy(void* device, const void* host, int64_t bytes) = 0;

    // Makes StepSampling::counts of tokens on the device.
    virtual void count(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts) = 0;

    virtual void change(const StepState& state, const StepChanges& changes) = 0;
    virtual void replay(int64_t graph) = 0;

    // Marks the end of what was asked for so far, with a number below StepLoop::kMostInFlight.
    virtual void mark(int64_t number) = 0;
    virtual bool reached(int64_t number) = 0;

    // For the end of all that was asked for.
    virtual void wait() = 0;
};

class StepLoop : public DecodeLoop {
public:
    static constexpr int64_t kMostInFlight = 3;  // steps
    static constexpr int64_t kNumResults =
        kMostInFlight + 1;  // places of the ring that the results of a row go round in

    StepLoop(std::unique_ptr<StepDevice> device, int64_t block_size, int64_t vocab, int64_t most_rows)
        : device_(std::move(device)), block_size_(block_size), vocab_(vocab), most_rows_(most_rows) {}

    int64_t most_rows() const override { return most_rows_; }
    int64_t most_blocks() const override { return graph_->state.most_blocks; }
    void begin(const std::vector<LoopRow>& rows) override;
    void extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) override;
    void rest(int64_t row) override;
    void launch() override;
    bool arrived() override { return device_->reached(num_read_ % kMostInFlight); }
    std::vector<StepResult> read() override;
    void drop() override;
    void forget() override;

    int64_t num_captures() const { return num_captures_; }
    int64_t num_counted() const { return num_counted_; }  // rows whose tokens had to be counted

private:
    // A captured step, and its memory. All but the results lies in one piece.
    struct Graph {
        int64_t number = -1;
        int64_t rows = 0;
        int64_t bytes = 0;               // of the piece
        unsigned char* image = nullptr;  // the piece on the host, from where it is copied
        StepState state = {};            // on the device
    };
    struct Row {
        int64_t num_tokens;  // after all that was launched
        int64_t limit;
        size_t num_blocks;  // that the device knows of
        bool rests = false;
    };
    // [V] on the device: how often each token stands in the first `num_tokens` tokens of a sequence.
    struct Counts {
        uint32_t* memory = nullptr;
        int64_t id = -1;  // of the sequence; -1: of none
        int64_t num_tokens = 0;
        int64_t row = -1;  // that it has at present; -1: none
    };

    Graph& graph_for(int64_t num_rows, int64_t most_blocks);
    void make_room_to_work(int64_t rows, int64_t most_blocks);
    Graph make_graph(int64_t rows, int64_t most_blocks);
    template <class Value>
    Value* in_image(const Value* on_device) const;
    void write_rows(const std::vector<LoopRow>& rows);
    void make_room_for_extras(const std::vector<LoopRow>& rows);
    void keep_counts();
    Counts& counts_of(const LoopRow& row);

    const std::unique_ptr<StepDevice> device_;
    const int64_t block_size_, vocab_, most_rows_;
    std::map<std::pair<int64_t, int64_t>, Graph> graphs_;  // by rows and blocks
    Graph* graph_ = nullptr;                               // of the rows that were taken up last
    std::vector<Row> rows_;

    // What all captured steps work in, one at a time.
    struct Workspace {
        void* memory = nullptr;
        int64_t bytes = 0;
    } workspace_;

    // Edits of the rows, and tokens to be counted.
    struct Extras {
        unsigned char* memory = nullptr;  // on the device
        unsigned char* image = nullptr;   // on the host
        int64_t bytes = 0;
    } extras_;
    std::deque<Counts> counts_;

    bool begins_ = false;                         // nothing tells yet that what begin copies is copied
    std::vector<StepChange> changes_;             // before the next launch
    std::deque<std::vector<int64_t>> in_flight_;  // for each step, the positions of its tokens; -1 of rows at rest
    int64_t num_launched_ = 0, num_read_ = 0, num_captures_ = 0, num_counted_ = 0;
};

}  // namespace demiurgic::cuda
