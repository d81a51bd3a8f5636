#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "decoder.h"
#include "kernels/decode_loop.h"

namespace demiurgic {

// A decode loop on any device, by the entries of the kernel table: for tests of what runs steps ahead. It knows of its rows
// no more than a device that is far from the host, and its results come late. It is no faster than the simple loop.
class LateLoop : public DecodeLoop {
public:
    LateLoop(const Kernels& kernels, Decoder& decoder, KVCache& cache, int64_t block_size, at::Device device)
        : kernels_(kernels),
          decoder_(decoder),
          cache_(cache),
          block_size_(block_size),
          device_(device),
          context_{device, kernels.entries} {}

    int64_t most_rows() const override { return 64; }
    int64_t most_blocks() const override { return most_blocks_; }
    void begin(const std::vector<LoopRow>& rows) override;
    void extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) override;
    void rest(int64_t row) override { rows_[static_cast<size_t>(row)].rests = true; }
    void launch() override;
    bool arrived() override;
    std::vector<StepResult> read() override;
    void drop() override { results_.clear(); }
    void forget() override { rows_.clear(); }

private:
    struct Row {
        StepSampling options;
        std::vector<StepEdit> edits;
        std::unordered_map<int64_t, uint32_t> counts;  // by token, as in StepSampling
        std::unique_ptr<Sequence> sequence;            // its tokens and blocks, without options
        int64_t limit;
        bool needs_counts;
        bool rests = false;

        void count(int64_t token, bool counted);
        std::vector<TokenEdit> edits_now() const;
        void accept(int64_t token);
    };

    const Kernels& kernels_;
    Decoder& decoder_;
    KVCache& cache_;
    const int64_t block_size_;
    const at::Device device_;
    Context context_;
    int64_t most_blocks_ = 0;
    std::vector<Row> rows_;
    std::deque<std::vector<StepResult>> results_;
    int num_asked_ = 0;  // whether the oldest are there
};

}  // namespace demiurgic
