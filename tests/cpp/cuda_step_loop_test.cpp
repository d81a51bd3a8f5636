// The loop around captured steps, on a device that is made up: it does what it is asked in order, but late, and its steps read
// and write the state as the real ones do.

#include "kernels/cuda/step_loop.h"

#include <cstring>
#include <deque>
#include <set>

#include "kernels/cuda/step_changes.h"
#include "small_engine.h"

namespace demiurgic::test {

namespace {

using namespace cuda;

constexpr int64_t kVocab = 1000;

class MadeUpDevice : public StepDevice {
public:
    // `moves`: now and then the cache lies elsewhere.
    MadeUpDevice(Memory& cache, bool moves) : cache_(cache), moves_(moves) {}

    bool refresh(int64_t most_positions) override {
        most_positions_ = most_positions;
        return moves_ && next() % 6 == 0;
    }
    void* device_memory(int64_t bytes) override { return add(device_, bytes); }
    void* host_memory(int64_t bytes) override { return add(host_, bytes); }

    int64_t workspace_bytes(int64_t rows, int64_t most_blocks) override { return rows * most_blocks; }

    int64_t capture(const StepState& state, int64_t rows, void* workspace) override {
        check(state.block_size == kBlockSize && state.num_results == StepLoop::kNumResults, "a graph has an odd state");
        for (const Graph& graph : graphs_) check(graph.workspace == workspace, "two graphs have two workspaces");
        graphs_.push_back({state, rows, workspace});
        return static_cast<int64_t>(graphs_.size()) - 1;
    }

    void forget() override {
        check(queue_.empty(), "memory goes while it is in use");
        device_.clear();
        host_.clear();
        graphs_.clear();
    }

    void copy(void* device, const void* host, int64_t bytes) override {
        check(is_in(device_, device, bytes) && is_in(host_, host, bytes),
              "a copy is not from pinned memory to the device");
        queue_.push_back([=] { std::memcpy(device, host, static_cast<size_t>(bytes)); });
    }

    void count(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts) override {
        queue_.push_back([=] {
            std::fill_n(counts, kVocab, 0u);
            for (int64_t i = 0; i < num_tokens; ++i) {
                counts[tokens[i]] = (counts[tokens[i]] + (i >= first_counted)) | kInContext;
            }
        });
    }

    void change(const StepState& state, const StepChanges& changes) override {
        queue_.push_back([=] { check(launch_changes(state, changes, nullptr) == cudaSuccess, "no launch"); });
    }

    void replay(int64_t graph) override {
        queue_.push_back([this, graph] { step(graphs_.at(graph)); });
    }

    void mark(int64_t number) override {
        reached_.erase(number);
        queue_.push_back([this, number] { reached_.insert(number); });
    }

    bool reached(int64_t number) override {
        for (uint64_t i = next() % 4; i > 0 && !queue_.empty(); --i) run_next();
        return reached_.count(number) > 0;
    }

    void wait() override {
        while (!queue_.empty()) run_next();
    }

private:
    using Pieces = std::map<const unsigned char*, std::vector<unsigned char>>;
    struct Graph {
        StepState state;
        int64_t rows;
        void* workspace;
    };

    uint64_t next() { return random_ = mix(random_); }

    static void* add(Pieces& pieces, int64_t bytes) {
        std::vector<unsigned char> piece(static_cast<size_t>(bytes), 0xab);  // what was there before
        unsigned char* memory = piece.data();
        pieces.emplace(memory, std::move(piece));
        return memory;
    }

    static bool is_in(const Pieces& pieces, const void* memory, int64_t bytes) {
        const auto* begin = static_cast<const unsigned char*>(memory);
        auto piece = pieces.upper_bound(begin);
        if (piece == pieces.begin()) return false;
        --piece;
        return begin + bytes <= piece->first + piece->second.size();
    }

    void run_next() {
        const std::function<void()> task = std::move(queue_.front());
        queue_.pop_front();
        task();
    }

    int64_t slot(const StepState& state, int64_t row, int64_t position) const {
        const int64_t block = state.block_table[row * state.most_blocks + position / kBlockSize];
        return block * kBlockSize + position % kBlockSize;
    }

    void step(const Graph& graph) {
        const auto& [state, rows, workspace] = graph;
        const int64_t bytes = workspace_bytes(rows, state.most_blocks);
        check(is_in(device_, workspace, bytes), "a graph works in memory that is not its own");
        std::memset(workspace, 0xcd, static_cast<size_t>(bytes));
        for (int64_t r = 0; r < rows; ++r) {
            const BatchRow& row = state.rows[r];
            check(row.first == r, "a row stands elsewhere");
            check((row.num_tokens == 0) == (row.context_length == 0), "a row is half at rest");
            check((row.num_tokens == 0) == (state.slots[r] < 0), "a row at rest has a slot, or the other way round");
            if (row.num_tokens == 0) continue;
            const int64_t position = row.context_length - 1;
            check(state.positions[r] == position && position < most_positions_, "a row has another position");
            check(state.slots[r] == slot(state, r, position), "a row's slot is not in its table");
            cache_.write(state.slots[r], state.tokens[r]);
        }
        for (int64_t r = 0; r < rows; ++r) {
            if (state.rows[r].num_tokens > 0) decode(graph, r);
        }
    }

    // The end of a step, as in sampling.cu.
    void decode(const Graph& graph, int64_t r) {
        const auto& [state, num_rows, workspace] = graph;
        const StepSampling& options = state.sampling[r];
        std::vector<int64_t> tokens;
        for (int64_t i = 0; i < state.rows[r].context_length; ++i) {
            tokens.push_back(cache_.slots.at(slot(state, r, i)).token);
        }
        check(tokens.back() == state.tokens[r], "the cache does not hold a row's token");
        if (options.counts) check_counts(options.counts, tokens);
        const int64_t token = next_token(tokens, options.seed), position = static_cast<int64_t>(tokens.size());
        bool rests = position + 1 >= state.limits[r];
        for (int i = 0; i < options.num_edits; ++i) rests |= options.edits[i].ends && options.edits[i].token == token;
        if (options.counts) options.counts[token] = (options.counts[token] + 1) | kInContext;
        state.tokens[r] = token;
        state.positions[r] = position;
        state.rows[r] = {r, rests ? 0 : 1, rests ? 0 : position + 1};
        state.slots[r] = rests ? -1 : slot(state, r, position);
        state.results[position % state.num_results * num_rows + r] = {token, 0.0f, 0.0f, rests, 0, position};
    }

    void check_counts(const uint32_t* counts, const std::vector<int64_t>& tokens) const {
        std::map<int64_t, uint32_t> expected;
        for (const int64_t token : tokens) ++expected[token];
        for (const auto& [token, count] : expected)
            check(counts[token] == (count | kInContext), "a token is miscounted");
        const auto num_counted = kVocab - std::count(counts, counts + kVocab, 0u);
        check(num_counted == static_cast<int64_t>(expected.size()), "a token is counted that is not there");
    }

    Memory& cache_;
    const bool moves_;
    uint64_t random_ = 1;
    int64_t most_positions_ = 0;
    Pieces device_, host_;
    std::vector<Graph> graphs_;
    std::deque<std::function<void()>> queue_;
    std::set<int64_t> reached_;
};

std::unique_ptr<StepLoop> make_loop(Memory& cache, bool moves) {
    return std::make_unique<StepLoop>(std::make_unique<MadeUpDevice>(cache, moves), kBlockSize, kVocab,
                                      /*most_rows=*/6);
}

void threads_get_what_one_would(bool keeps_prefixes, bool moves) {
    for (const int64_t num_blocks : {24, 80}) {
        TestEngine engine(num_blocks, /*max_step_tokens=*/40, keeps_prefixes,
                          [moves](Memory& cache) { return make_loop(cache, moves); });
        use_by_many_threads(engine, keeps_prefixes);
        check(engine.num_interrupted() > 0 && engine.num_launched() > 0, "no step was interrupted or launched");
    }
}

void threads_share_a_loop() { threads_get_what_one_would(false, false); }

void threads_share_a_loop_over_a_cache_that_moves() { threads_get_what_one_would(true, true); }

void one_thread_runs_ahead() {
    TestEngine engine(/*num_blocks=*/80, /*max_step_tokens=*/40, false,
                      [](Memory& cache) { return make_loop(cache, true); });
    use(engine, /*thread=*/9, /*num_calls=*/300, false);
    check(engine.num_steps_ahead() > 200 && engine.num_surplus() > 20,
          "hardly a step ran ahead: the test shows little");
}

// Rows that each have `num_tokens` tokens, in blocks of their own.
struct Rows {
    Rows(int64_t count, int64_t num_tokens) {
        for (int64_t i = 0; i < count; ++i) tokens.emplace_back(num_tokens, 20 + i);
    }

    std::vector<LoopRow> rows(Memory& cache) const {
        std::vector<LoopRow> list;
        for (size_t i = 0; i < tokens.size(); ++i) {
            LoopRow row = {};
            row.id = static_cast<int64_t>(i);
            row.tokens = tokens[i].data();
            row.num_tokens = static_cast<int64_t>(tokens[i].size());
            row.needs_counts = true;
            for (int64_t block = 0; block <= row.num_tokens / kBlockSize; ++block) {
                row.blocks.push_back(static_cast<int32_t>(i * 100 + block));
            }
            row.limit = static_cast<int64_t>(row.blocks.size()) * kBlockSize + 1;
            for (int64_t p = 0; p + 1 < row.num_tokens; ++p) {
                cache.write((static_cast<int64_t>(i) * 100 + p / kBlockSize) * kBlockSize + p % kBlockSize,
                            tokens[i][p]);
            }
            list.push_back(std::move(row));
        }
        return list;
    }

    // Steps; what they give is appended.
    void run(StepLoop& loop, Memory& cache, int num_steps) {
        loop.begin(rows(cache));
        for (int i = 0; i < num_steps; ++i) {
            loop.launch();
            while (!loop.arrived()) {
            }
            const std::vector<StepResult> results = loop.read();
            for (size_t r = 0; r < tokens.size(); ++r) {
                check(results[r].position == static_cast<int64_t>(tokens[r].size()), "a result is of another position");
                check(results[r].token == next_token(tokens[r], 0), "a row has another token");
                tokens[r].push_back(results[r].token);
            }
        }
        loop.drop();
    }

    std::vector<std::vector<int64_t>> tokens;
};

// In powers of two of rows and blocks. Only another cache, or a workspace that is too small, makes captured graphs useless.
void a_graph_is_captured_once_a_shape() {
    Memory cache;
    cache.slots.resize(600 * kBlockSize);
    const auto loop = make_loop(cache, false);
    const auto captures_after = [&](int64_t num_rows, int64_t num_tokens) {
        Rows(num_rows, num_tokens).run(*loop, cache, 3);
        return loop->num_captures();
    };
    check(captures_after(3, 20) == 1, "the first step is captured");
    check(captures_after(4, 200) == 1, "four rows take the graph of three");
    check(captures_after(5, 20) == 2 && captures_after(6, 20) == 2, "five and six rows share another");
    check(captures_after(4, 14 * kBlockSize) == 3, "the graph of four rows went with a workspace for four");
    check(captures_after(4, 15 * kBlockSize) == 4, "with 16 blocks there is no room for one more");
    check(captures_after(1, 1) == 5 && captures_after(4, 20) == 5 && captures_after(4, 300) == 5,
          "what works in the workspace of now is there still");
    check(captures_after(6, 300) == 6 && captures_after(1, 1) == 7 && captures_after(4, 300) == 8,
          "a larger workspace takes all graphs with it, once");
    check(captures_after(6, 300) == 8 && captures_after(1, 1) == 8 && captures_after(4, 300) == 8,
          "they share the largest");
}

// Counts stay on the device; only who is new there is counted.
void tokens_are_counted_once() {
    Memory cache;
    cache.slots.resize(600 * kBlockSize);
    const auto loop = make_loop(cache, false);
    Rows rows(3, 20);
    rows.run(*loop, cache, 3);
    check(loop->num_counted() == 3, "each row is counted");
    rows.run(*loop, cache, 3);
    check(loop->num_counted() == 3, "what the device has counted is counted again");
    rows.tokens[1].push_back(7);  // by a step elsewhere
    rows.run(*loop, cache, 1);
    check(loop->num_counted() == 4, "a row that has got on without the loop is not counted");
    loop->begin(rows.rows(cache));
    loop->launch();
    loop->drop();
    rows.run(*loop, cache, 1);
    check(loop->num_counted() == 7, "after a step that nobody read, counts are not to be trusted");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"threads share a loop", threads_share_a_loop},
            {"threads share a loop over a cache that moves", threads_share_a_loop_over_a_cache_that_moves},
            {"one thread runs ahead", one_thread_runs_ahead},
            {"a graph is captured once a shape", a_graph_is_captured_once_a_shape},
            {"tokens are counted once", tokens_are_counted_once},
        },
        argc > 1 ? argv[1] : nullptr);
}
