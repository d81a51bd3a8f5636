#include "kernels/cuda/step_loop.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace demiurgic::cuda {

namespace {

// Hands out parts of a piece of memory, one after the other.
class Layout {
public:
    explicit Layout(unsigned char* memory = nullptr) : memory_(memory) {}

    // The next `count` values; counted only, where there is no memory.
    template <class Value>
    Value* take(int64_t count) {
        Value* values = memory_ ? reinterpret_cast<Value*>(memory_ + bytes_) : nullptr;
        bytes_ += (count * static_cast<int64_t>(sizeof(Value)) + 15) / 16 * 16;
        return values;
    }

    int64_t bytes() const { return bytes_; }

private:
    unsigned char* memory_;
    int64_t bytes_ = 0;
};

int64_t lay_out(StepState& state, unsigned char* memory, int64_t rows) {
    Layout layout(memory);
    state.tokens = layout.take<int64_t>(rows);
    state.positions = layout.take<int64_t>(rows);
    state.rows = layout.take<BatchRow>(rows);
    state.slots = layout.take<int64_t>(rows);
    state.limits = layout.take<int64_t>(rows);
    state.sampling = layout.take<StepSampling>(rows);
    state.block_table = layout.take<int64_t>(rows * state.most_blocks);
    return layout.bytes();
}

int64_t power_of_two(int64_t least, int64_t value) {
    while (least < value) least *= 2;
    return least;
}

}  // namespace

// ---- graphs -----------------------------------------------------------------------------------------------------------

// A captured step has the address of its workspace in it. So where a larger one is wanted, all graphs go with the old one:
// those that are used again are captured again, at most once for each growth.
void StepLoop::make_room_to_work(int64_t rows, int64_t most_blocks) {
    const int64_t bytes = device_->workspace_bytes(rows, most_blocks);
    if (bytes <= workspace_.bytes) return;
    forget();
    workspace_.memory = device_->device_memory(bytes);
    workspace_.bytes = bytes;
}

StepLoop::Graph StepLoop::make_graph(int64_t rows, int64_t most_blocks) {
    Graph graph;
    graph.rows = rows;
    graph.state.most_blocks = most_blocks;
    graph.state.block_size = block_size_;
    graph.bytes = lay_out(graph.state, nullptr, rows);
    lay_out(graph.state, static_cast<unsigned char*>(device_->device_memory(graph.bytes)), rows);
    graph.image = static_cast<unsigned char*>(device_->host_memory(graph.bytes));
    graph.state.num_results = kNumResults;
    graph.state.results =
        static_cast<StepResult*>(device_->host_memory(kNumResults * rows * static_cast<int64_t>(sizeof(StepResult))));
    graph.number = device_->capture(graph.state, rows, workspace_.memory);
    ++num_captures_;
    return graph;
}

// In powers of two, so that there are few.
StepLoop::Graph& StepLoop::graph_for(int64_t num_rows, int64_t most_blocks) {
    const std::pair shape(power_of_two(1, num_rows), power_of_two(16, most_blocks));
    if (const auto found = graphs_.find(shape); found != graphs_.end()) return found->second;
    make_room_to_work(shape.first, shape.second);
    return graphs_.emplace(shape, make_graph(shape.first, shape.second)).first->second;
}

void StepLoop::forget() {
    graphs_.clear();
    graph_ = nullptr;
    rows_.clear();
    counts_.clear();
    extras_ = {};
    workspace_ = {};
    device_->forget();
}

// ---- rows -------------------------------------------------------------------------------------------------------------

// What the rows before leave: their counts hold all tokens that were launched.
void StepLoop::keep_counts() {
    for (Counts& counts : counts_) {
        if (counts.row >= 0) counts.num_tokens = rows_[static_cast<size_t>(counts.row)].num_tokens;
        counts.row = -1;
    }
}

// Those of its sequence, else some that no other row has.
StepLoop::Counts& StepLoop::counts_of(const LoopRow& row) {
    const auto its_own = [&row](const Counts& counts) { return counts.id == row.id; };
    const auto unused = [](const Counts& counts) { return counts.row < 0 && counts.id < 0; };
    auto found = std::find_if(counts_.begin(), counts_.end(), its_own);
    if (found == counts_.end()) found = std::find_if(counts_.begin(), counts_.end(), unused);
    if (found != counts_.end()) return *found;
    const int64_t bytes = vocab_ * static_cast<int64_t>(sizeof(uint32_t));
    return counts_.emplace_back(Counts{static_cast<uint32_t*>(device_->device_memory(bytes))});
}

void StepLoop::make_room_for_extras(const std::vector<LoopRow>& rows) {
    Layout layout;
    for (const LoopRow& row : rows) {
        layout.take<StepEdit>(static_cast<int64_t>(row.edits.size()));
        if (row.needs_counts) layout.take<int64_t>(row.num_tokens);
    }
    if (layout.bytes() <= extras_.bytes) return;
    extras_.bytes = 2 * layout.bytes();
    extras_.memory = static_cast<unsigned char*>(device_->device_memory(extras_.bytes));
    extras_.image = static_cast<unsigned char*>(device_->host_memory(extras_.bytes));
}

template <class Value>
Value* StepLoop::in_image(const Value* on_device) const {
    const auto* begin = reinterpret_cast<const unsigned char*>(graph_->state.tokens);
    return reinterpret_cast<Value*>(graph_->image + (reinterpret_cast<const unsigned char*>(on_device) - begin));
}

// The image of the rows, and of what they need beside; then both are copied. Rows that nobody has taken are at rest.
void StepLoop::write_rows(const std::vector<LoopRow>& rows) {
    const StepState& state = graph_->state;
    std::memset(graph_->image, 0, static_cast<size_t>(graph_->bytes));
    for (int64_t i = 0; i < graph_->rows; ++i) {
        in_image(state.rows)[i] = {i, 0, 0};
        in_image(state.slots)[i] = -1;
        in_image(state.limits)[i] = 1;
    }
    struct Uncounted {
        Counts* counts;
        const LoopRow* row;
        const int64_t* tokens;  // on the device
    };
    std::vector<Uncounted> uncounted;
    Layout extras(extras_.memory);
    const auto image_of = [this](const auto* on_device) {
        return extras_.image + (reinterpret_cast<const unsigned char*>(on_device) - extras_.memory);
    };
    for (size_t i = 0; i < rows.size(); ++i) {
        const LoopRow& row = rows[i];
        const int64_t last = row.num_tokens - 1;
        in_image(state.tokens)[i] = row.tokens[last];
        in_image(state.positions)[i] = last;
        in_image(state.rows)[i] = {static_cast<int64_t>(i), 1, row.num_tokens};
        in_image(state.slots)[i] =
            row.blocks[static_cast<size_t>(last / block_size_)] * block_size_ + last % block_size_;
        in_image(state.limits)[i] = row.limit;
        std::copy(row.blocks.begin(), row.blocks.end(),
                  in_image(state.block_table) + static_cast<int64_t>(i) * state.most_blocks);

        StepSampling& options = in_image(state.sampling)[i] = row.options;
        options.num_edits = static_cast<int32_t>(row.edits.size());
        if (!row.edits.empty()) {
            options.edits = extras.take<StepEdit>(options.num_edits);
            std::memcpy(image_of(options.edits), row.edits.data(), row.edits.size() * sizeof(StepEdit));
        }
        if (!row.needs_counts) continue;
        Counts& counts = counts_of(row);
        const bool counted = counts.id == row.id && counts.num_tokens == row.num_tokens;
        counts.id = row.id;
        counts.row = static_cast<int64_t>(i);
        options.counts = counts.memory;
        if (counted) continue;
        const int64_t* tokens = extras.take<int64_t>(row.num_tokens);
        std::memcpy(image_of(tokens), row.tokens, static_cast<size_t>(row.num_tokens) * sizeof(int64_t));
        uncounted.push_back({&counts, &row, tokens});
    }
    device_->copy(state.tokens, graph_->image, graph_->bytes);
    if (extras.bytes() > 0) device_->copy(extras_.memory, extras_.image, extras.bytes());
    for (const auto& [counts, row, tokens] : uncounted) {
        device_->count(tokens, row->num_tokens, row->first_counted, counts->memory);
        ++num_counted_;
    }
}

void StepLoop::begin(const std::vector<LoopRow>& rows) {
    keep_counts();
    begins_ = true;
    rows_.clear();
    changes_.clear();
    int64_t most_blocks = 0;
    for (const LoopRow& row : rows) most_blocks = std::max(most_blocks, static_cast<int64_t>(row.blocks.size()));
    ++most_blocks;  // a step may need one more
    if (device_->refresh(power_of_two(16, most_blocks) * block_size_)) forget();
    graph_ = &graph_for(static_cast<int64_t>(rows.size()), most_blocks);
    // What a step of other rows has left must not look like a result of these.
    std::memset(graph_->state.results, 0xff, static_cast<size_t>(kNumResults * graph_->rows) * sizeof(StepResult));
    // Sequences that are not among the rows may be gone for good.
    for (Counts& counts : counts_) {
        const auto has_them = [&counts](const LoopRow& row) { return row.id == counts.id; };
        if (std::none_of(rows.begin(), rows.end(), has_them)) counts.id = -1;
    }
    make_room_for_extras(rows);
    for (const LoopRow& row : rows) rows_.push_back({row.num_tokens, row.limit, row.blocks.size()});
    write_rows(rows);
}

void StepLoop::extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) {
    Row& extended = rows_[static_cast<size_t>(row)];
    for (size_t i = extended.num_blocks; i < blocks.size(); ++i) {
        changes_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(i), blocks[i], limit});
    }
    extended.num_blocks = blocks.size();
    extended.limit = limit;
}

void StepLoop::rest(int64_t row) {
    rows_[static_cast<size_t>(row)].rests = true;
    changes_.push_back({static_cast<int32_t>(row), -1, 0, 0});
}

// ---- steps ------------------------------------------------------------------------------------------------------------

void StepLoop::launch() {
    if (static_cast<int64_t>(in_flight_.size()) == kMostInFlight) throw std::logic_error("too many steps in flight");
    for (size_t first = 0; first < changes_.size(); first += StepChanges::kMost) {
        StepChanges some = {};
        some.count = static_cast<int32_t>(std::min<size_t>(StepChanges::kMost, changes_.size() - first));
        std::copy_n(changes_.begin() + static_cast<int64_t>(first), some.count, some.list);
        device_->change(graph_->state, some);
    }
    changes_.clear();
    device_->replay(graph_->number);
    device_->mark(num_launched_++ % kMostInFlight);
    std::vector<int64_t>& positions = in_flight_.emplace_back();
    for (Row& row : rows_) {
        positions.push_back(row.rests ? -1 : row.num_tokens++);
        row.rests |= row.num_tokens >= row.limit;
    }
}

std::vector<StepResult> StepLoop::read() {
    std::vector<StepResult> results;
    for (size_t i = 0; i < rows_.size(); ++i) {
        const int64_t position = in_flight_.front()[i];
        StepResult& result = results.emplace_back(StepResult{-1, 0.0f, 0.0f, 1, 0, -1});
        if (position >= 0)
            result = graph_->state.results[position % kNumResults * graph_->rows + static_cast<int64_t>(i)];
    }
    in_flight_.pop_front();
    ++num_read_;
    begins_ = false;
    return results;
}

void StepLoop::drop() {
    changes_.clear();
    if (in_flight_.empty() && !begins_) return;
    device_->wait();
    begins_ = false;
    in_flight_.clear();
    num_read_ = num_launched_;
    for (Counts& counts : counts_) counts.id = counts.row = -1;  // they hold tokens that nobody has accepted
}

}  // namespace demiurgic::cuda
