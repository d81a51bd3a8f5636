// Whole decode steps: the loop around them with the real kernels, run by the emulator. What a row gives is the same bits
// whatever rows, graphs and runs of steps it is given in; and near that, where a library multiplies many of them.

#include <cublasLt.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/step_changes.h"
#include "kernels/cuda/step_loop.h"
#include "philox.h"
#include "simt.h"

namespace demiurgic::test {

namespace {

using namespace cuda;

constexpr int64_t kBlockSize = 16, kBlocks = 140, kPositions = 128;
constexpr int64_t kHidden = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 8, kInner = 48, kVocab = 40, kLayers = 2;

// Numbers from a seed, between -1 and 1 times `scale`.
std::vector<float> numbers(int64_t count, uint64_t seed, float scale) {
    std::vector<float> list;
    for (int64_t i = 0; i < count; ++i) {
        const auto bits = static_cast<int64_t>(token_bits(seed, static_cast<uint64_t>(i)) >> 40);
        list.push_back(scale * (static_cast<float>(bits) / static_cast<float>(1 << 23) - 1.0f));
    }
    return list;
}

struct Weights {
    explicit Weights(uint64_t seed) : seed_(seed) {
        const auto matrix = [this](int64_t rows, int64_t columns) {
            return Matrix{add(rows * columns, 2.0f / std::sqrt(static_cast<float>(columns))), columns, nullptr};
        };
        const auto norm = [this] { return add(kHidden, 1.0f); };
        model.embed = {add(kVocab * kHidden, 1.0f), kHidden};
        for (int64_t i = 0; i < kLayers; ++i) {
            LayerTable& layer = layers.emplace_back();
            layer.attention_in = {norm(), matrix(kHeads * kHeadDim, kHidden), matrix(kKvHeads * kHeadDim, kHidden),
                                  matrix(kKvHeads * kHeadDim, kHidden)};
            layer.attention_out = {matrix(kHidden, kHeads * kHeadDim)};
            layer.mlp = {norm(), matrix(kInner, kHidden), matrix(kInner, kHidden), matrix(kHidden, kInner)};
        }
        model.head = {norm(), matrix(kVocab, kHidden)};
    }

    ModelTable model;
    std::vector<LayerTable> layers;

private:
    const float* add(int64_t count, float scale) {
        memory_.push_back(numbers(count, seed_ + memory_.size(), scale));
        return memory_.back().data();
    }

    const uint64_t seed_;
    std::vector<std::vector<float>> memory_;
};

// What is alive while steps are made: weights that may be exchanged for others, and a cache.
struct Machine {
    std::shared_ptr<const Weights> weights = std::make_shared<Weights>(1);
    std::shared_ptr<ProductLibrary> library;
    std::vector<std::vector<float>> keys, values;
    std::vector<float> cos = numbers(kPositions * kHeadDim / 2, 100, 1.0f),
                       sin = numbers(kPositions * kHeadDim / 2, 101, 1.0f);

    Machine() {
        for (int64_t i = 0; i < kLayers; ++i) {
            keys.emplace_back(kBlocks * kKvHeads * kBlockSize * kHeadDim, 0.25f);
            values.emplace_back(kBlocks * kKvHeads * kBlockSize * kHeadDim, 0.25f);
        }
    }
};

class EmulatedDevice : public StepDevice {
public:
    explicit EmulatedDevice(Machine& machine)
        : machine_(machine), table_(sizeof(ModelTable) + kLayers * sizeof(LayerTable)) {}

    bool refresh(int64_t) override {
        std::memcpy(table_.data(), &machine_.weights->model, sizeof(ModelTable));
        std::memcpy(table_.data() + sizeof(ModelTable), machine_.weights->layers.data(), kLayers * sizeof(LayerTable));
        const std::vector<const void*> before = captured_;
        captured_ = captured_addresses(step_model());
        return captured_ != before;
    }
    void* device_memory(int64_t bytes) override {
        memory_.push_back(std::make_unique<unsigned char[]>(static_cast<size_t>(bytes) + 256));
        const auto address = reinterpret_cast<uintptr_t>(memory_.back().get());
        return memory_.back().get() + (256 - address % 256);
    }
    void* host_memory(int64_t bytes) override { return device_memory(bytes); }

    // As decode_graph.cpp does it: first a step of rows at rest, which must change nothing.
    int64_t workspace_bytes(int64_t rows, int64_t most_blocks) override {
        return step_workspace_bytes(step_model(), most_blocks, rows);
    }
    int64_t capture(const StepState& state, int64_t rows, void* workspace) override {
        const Graph graph{step_model(), state, rows, workspace};
        std::memset(state.tokens, 0, rows * sizeof(int64_t));
        std::memset(state.positions, 0, rows * sizeof(int64_t));
        std::memset(state.rows, 0, rows * sizeof(BatchRow));
        std::memset(state.slots, 0xff, rows * sizeof(int64_t));
        const auto keys = machine_.keys, values = machine_.values;
        launch(graph);
        check(keys == machine_.keys && values == machine_.values, "rows at rest write to the cache");
        graphs_.push_back(graph);
        return static_cast<int64_t>(graphs_.size()) - 1;
    }
    void forget() override {
        graphs_.clear();
        memory_.clear();
    }
    void copy(void* device, const void* host, int64_t bytes) override { std::memcpy(device, host, bytes); }
    void count(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts) override {
        check(launch_count_context(tokens, num_tokens, first_counted, counts, kVocab, nullptr) == cudaSuccess, "count");
    }
    void change(const StepState& state, const StepChanges& changes) override {
        check(launch_changes(state, changes, nullptr) == cudaSuccess, "change");
    }
    void replay(int64_t graph) override { launch(graphs_.at(graph)); }
    void mark(int64_t) override {}
    bool reached(int64_t) override { return true; }
    void wait() override {}

    // Captured: the sizes hold, the addresses of these weights need not.
    StepModel step_model() {
        StepModel step = {};
        step.entries = &kFloat32Layers;
        step.attend = attend_float32;
        step.norm = {true, 1e-5f};
        step.hidden = kHidden;
        step.vocab = kVocab;
        step.element_bytes = sizeof(float);
        step.cos = machine_.cos.data();
        step.sin = machine_.sin.data();
        step.model = machine_.weights->model;
        step.tables = machine_.weights->layers;
        step.model_on_device = reinterpret_cast<const ModelTable*>(table_.data());
        step.sampler_shared_bytes = 48 << 10;
        step.library = machine_.library.get();
        for (int64_t i = 0; i < kLayers; ++i) {
            step.layers.push_back({step.norm, step.norm, kHeads, kKvHeads, kHeadDim, kInner, true, Activation::silu,
                                   machine_.keys[i].data(), machine_.values[i].data()});
        }
        return step;
    }

private:
    struct Graph {
        StepModel model;
        StepState state;
        int64_t rows;
        void* workspace;
    };

    // A step needs nothing of what others have left in the workspace.
    static void launch(const Graph& graph) {
        const int64_t bytes = step_workspace_bytes(graph.model, graph.state.most_blocks, graph.rows);
        std::memset(graph.workspace, 0xff, static_cast<size_t>(bytes));
        check(launch_step(graph.model, graph.state, graph.rows, graph.workspace, nullptr) == cudaSuccess,
              "a launch fails");
    }

    Machine& machine_;
    std::vector<unsigned char> table_;
    std::vector<const void*> captured_;
    std::vector<std::unique_ptr<unsigned char[]>> memory_;
    std::vector<Graph> graphs_;
};

// A row, and what it has been given.
struct Row {
    explicit Row(int64_t number) : id(number), tokens{number % kVocab} {
        options.seed = static_cast<uint64_t>(number);
        options.top_k = number % 2 ? kVocab : 20;
        options.nucleus = int64_t{1} << 30;
        options.temperature = 0.9f;
        options.repetition = 1.2f;
        options.frequency = 0.1f;
        options.want_logprobs = true;
        edits = {{4, 3, 0.5f, true}, {INT64_MAX, 7, 0.0f, false}};
    }

    LoopRow loop_row() const {
        const int64_t size = static_cast<int64_t>(tokens.size());
        return {id, tokens.data(), size, 0, true, options, edits, blocks_for(size + 1), limit()};
    }
    std::vector<int32_t> blocks_for(int64_t num_tokens) const {
        std::vector<int32_t> blocks;
        for (int64_t i = 0; i * kBlockSize < num_tokens; ++i) blocks.push_back(static_cast<int32_t>(id + 8 * i));
        return blocks;
    }
    static int64_t limit() { return kPositions; }

    int64_t id;
    std::vector<int64_t> tokens;
    std::vector<float> logprobs;
    StepSampling options = {};
    std::vector<StepEdit> edits;
    bool ended = false;
};

// Steps of all rows, the host one step late.
void run(StepLoop& loop, std::vector<Row*> rows, int num_steps) {
    std::erase_if(rows, [](const Row* row) { return row->ended; });
    if (rows.empty()) return;
    std::vector<LoopRow> list;
    std::vector<int64_t> sizes;
    for (const Row* row : rows) {
        list.push_back(row->loop_row());
        sizes.push_back(list.back().num_tokens);
    }
    loop.begin(list);
    const auto read = [&] {
        const std::vector<StepResult> results = loop.read();
        for (size_t i = 0; i < rows.size(); ++i) {
            Row& row = *rows[i];
            if (row.ended) continue;
            check(results[i].position == static_cast<int64_t>(row.tokens.size()), "a result is of another position");
            row.tokens.push_back(results[i].token);
            row.logprobs.push_back(results[i].logprob);
            row.ended = results[i].rests != 0;
        }
    };
    for (int step = 0; step < num_steps; ++step) {
        for (size_t i = 0; i < rows.size(); ++i) {  // room for the token after the next
            loop.extend(static_cast<int64_t>(i), rows[i]->blocks_for(++sizes[i]), Row::limit());
        }
        loop.launch();
        if (step > 0) read();
    }
    read();
    loop.drop();
}

std::unique_ptr<StepLoop> make_loop(Machine& machine) {
    return std::make_unique<StepLoop>(std::make_unique<EmulatedDevice>(machine), kBlockSize, kVocab, 256);
}

constexpr int kSteps = 40;  // over two ends of blocks

Row alone(int64_t number, int num_steps = kSteps) {
    Machine machine;
    Row row(number);
    run(*make_loop(machine), {&row}, num_steps);
    return row;
}

void check_same(const Row& row, const Row& other) {
    check(row.tokens == other.tokens, "row " + std::to_string(row.id) + " has other tokens");
    check(row.logprobs.size() == other.logprobs.size() &&
              std::memcmp(row.logprobs.data(), other.logprobs.data(), row.logprobs.size() * sizeof(float)) == 0,
          "row " + std::to_string(row.id) + " has other log-probabilities");
}

// In a bucket of 8, some of them at rest from the start and some from their end on; in one run of steps, or in several; the
// emulator's threads in either order.
void a_row_is_what_it_is_alone() {
    std::vector<Row> expected;
    for (int64_t i = 0; i < 6; ++i) expected.push_back(alone(i));
    size_t num_ended = 0, longest = 0;
    for (const Row& row : expected) {
        num_ended += row.ended;
        longest = std::max(longest, row.tokens.size());
        for (const float logprob : row.logprobs) check(logprob <= 0, "no log-probability");
    }
    check(num_ended > 0 && longest > 2 * kBlockSize, "no row ended early, or all did: the test shows little");
    for (const auto order : {simt::Order::forward, simt::Order::backward}) {
        simt::order = order;
        for (const std::vector<int>& runs : {std::vector<int>{kSteps}, {1, 2, 14, 20, 3}}) {
            Machine machine;
            const auto loop = make_loop(machine);
            std::vector<Row> rows;
            for (int64_t i = 0; i < 6; ++i) rows.emplace_back(i);
            std::vector<Row*> all;
            for (Row& row : rows) all.push_back(&row);
            for (const int num_steps : runs) run(*loop, all, num_steps);
            for (size_t i = 0; i < rows.size(); ++i) check_same(rows[i], expected[i]);
        }
    }
    simt::order = simt::Order::forward;
}

// Weights that lie elsewhere are found, and those of other values are used, without another capture.
void weights_may_move() {
    Machine machine;
    const auto loop = make_loop(machine);
    const Row before = alone(1);
    Row row(1);
    run(*loop, {&row}, 10);
    machine.weights = std::make_shared<Weights>(1);
    run(*loop, {&row}, kSteps - 10);
    check_same(row, before);
    machine.weights = std::make_shared<Weights>(2);
    Row other(1);
    run(*loop, {&other}, kSteps);
    check(other.tokens != before.tokens, "other weights give the same tokens");
    check(loop->num_captures() == 1, "a step was captured again");
}

constexpr int64_t kManyRows = 70;

std::vector<Row> many(StepLoop& loop, int num_steps, int64_t num_rows = kManyRows) {
    std::vector<Row> rows;
    for (int64_t i = 0; i < num_rows; ++i) rows.emplace_back(i);
    std::vector<Row*> all;
    for (Row& row : rows) all.push_back(&row);
    run(loop, all, num_steps);
    return rows;
}

// In every bucket: those up to 16 rows, where each block norms for itself, up to 64, and those beyond.
void a_row_is_the_same_in_every_bucket() {
    constexpr int num_steps = 2;
    for (const int64_t num_rows : {2, 3, 7, 16, 17, 33, 65, 130}) {
        Machine machine;
        const auto loop = make_loop(machine);
        const std::vector<Row> rows = many(*loop, num_steps, num_rows);
        for (const int64_t i : {int64_t{0}, num_rows - 1}) check_same(rows[i], alone(i, num_steps));
    }
}

// Kernels of a step of rows at rest.
int kernels_of(const StepModel& model, int64_t rows, int64_t most_blocks) {
    StepState state = {};
    std::vector<int64_t> tokens(rows), positions(rows), slots(rows, -1), limits(rows), blocks(rows * most_blocks);
    std::vector<BatchRow> at_rest(rows);
    std::vector<StepSampling> sampling(rows);
    std::vector<StepResult> results(rows);
    state.tokens = tokens.data();
    state.positions = positions.data();
    state.rows = at_rest.data();
    state.slots = slots.data();
    state.limits = limits.data();
    state.sampling = sampling.data();
    state.block_table = blocks.data();
    state.most_blocks = most_blocks;
    state.block_size = kBlockSize;
    state.results = results.data();
    state.num_results = 1;
    const auto bytes = static_cast<size_t>(step_workspace_bytes(model, most_blocks, rows));
    const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
    const int before = simt::num_launches;
    check(launch_step(model, state, rows, workspace.get(), nullptr) == cudaSuccess, "a launch fails");
    return simt::num_launches - before;
}

// Up to the largest bucket, for whose rows attention's pieces are computed one by one and need no merge.
void a_layer_is_at_most_six_kernels() {
    constexpr int beside = 3;  // embed, head, sampler
    Machine machine;
    EmulatedDevice device(machine);
    device.refresh(kPositions);
    for (int64_t rows = 1; rows <= 256; rows *= 2) {
        const int num = kernels_of(device.step_model(), rows, /*most_blocks=*/32);
        check(num == kLayers * (rows < 256 ? 6 : 5) + beside,
              std::to_string(rows) + " rows are " + std::to_string(num) + " kernels");
    }
}

// Whose launches hold the addresses of weights: where those have moved, a step is captured again.
void a_library_multiplies_many_rows() {
    constexpr int num_steps = 3, num_products = (kLayers * 7 + 1) * (1 + num_steps);  // the step at rest goes first
    Machine ours, machine, other;
    machine.library = other.library = make_cublaslt();
    const auto loop = make_loop(machine);
    const std::vector<Row> expected = many(*make_loop(ours), num_steps);
    fake_cublaslt::num_products = 0;
    const std::vector<Row> rows = many(*loop, num_steps);
    check(fake_cublaslt::num_products == num_products, "other products are the library's");
    int num_alike = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].tokens != expected[i].tokens) continue;
        ++num_alike;
        for (size_t k = 0; k < rows[i].logprobs.size(); ++k) {
            check(std::fabs(rows[i].logprobs[k] - expected[i].logprobs[k]) < 1e-4f, "a log-probability is far off");
        }
    }
    check(num_alike > 0.9 * kManyRows, "other tokens");

    const std::shared_ptr<const Weights> before = machine.weights;
    machine.weights = other.weights = std::make_shared<Weights>(2);
    const std::vector<Row> moved = many(*loop, num_steps), fresh = many(*make_loop(other), num_steps);
    for (size_t i = 0; i < moved.size(); ++i) check_same(moved[i], fresh[i]);
    check(loop->num_captures() == 2, "a step is captured again where weights have moved, and only there");

    fake_cublaslt::num_products = 0;
    Row row(1);
    run(*loop, {&row}, num_steps);
    check(fake_cublaslt::num_products == 0, "few rows are the library's");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"a row is what it is alone", a_row_is_what_it_is_alone},
            {"weights may move", weights_may_move},
            {"a row is the same in every bucket", a_row_is_the_same_in_every_bucket},
            {"a layer is at most six kernels", a_layer_is_at_most_six_kernels},
            {"a library multiplies many rows", a_library_multiplies_many_rows},
        },
        argc > 1 ? argv[1] : nullptr);
}
