#include "kernels/cuda/decode_graph.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/layers.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/step_changes.h"
#include "kernels/cuda/step_loop.h"

namespace demiurgic {

namespace {

using namespace cuda;

constexpr int64_t kMostRows = 256;

using AttendFunction = cudaError_t (*)(const Attend&, cudaStream_t, bool);

const Layers* layers_for(at::ScalarType dtype) {
    return dtype == at::kFloat      ? &kFloat32Layers
           : dtype == at::kBFloat16 ? &kBFloat16Layers
           : dtype == at::kHalf     ? &kFloat16Layers
                                    : nullptr;
}

AttendFunction attend_for(at::ScalarType dtype) {
    return dtype == at::kFloat ? attend_float32 : dtype == at::kBFloat16 ? attend_bfloat16 : attend_float16;
}

Matrix matrix_of(const Linear& linear) {
    if (!linear.weight.defined()) return {};
    return {linear.weight.const_data_ptr(), linear.weight.stride(0),
            linear.bias.defined() ? linear.bias.const_data_ptr() : nullptr};
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
}

// The parameters of a model as kernels find them in a captured step: in device memory, where they are looked up anew at
// each replay. What has moved is written here, and nothing is captured again.
struct LayerTable {
    AttentionInWeights attention_in;
    AttentionOutWeights attention_out;
    MlpWeights mlp;
};
struct ModelTable {
    EmbedWeights embed;
    HeadWeights head;
};

// In memory of either side; on the device for their addresses only.
const ModelTable& model_table(const at::Tensor& memory) {
    return *static_cast<const ModelTable*>(memory.const_data_ptr());
}
const LayerTable* layer_tables(const at::Tensor& memory) {
    return reinterpret_cast<const LayerTable*>(&model_table(memory) + 1);
}

// Activations and scratch memory of a step of one shape: all that its kernels write to beside the state and the cache.
struct Workspace {
    at::Tensor x;         // [B, H] float32
    at::Tensor q;         // [B, heads * d]
    at::Tensor attended;  // [B, heads * d]
    at::Tensor logits;    // [B, V]
    at::Tensor products, attention, sampler;
};

// A graph that can be launched, and what it writes to.
struct Captured {
    cudaGraphExec_t graph = nullptr;
    Workspace workspace;

    Captured() = default;
    Captured(const Captured&) = delete;
    Captured& operator=(const Captured&) = delete;
    ~Captured() {
        if (graph) C10_CUDA_CHECK_WARN(cudaGraphExecDestroy(graph));
    }
};

class GraphDevice : public StepDevice {
public:
    explicit GraphDevice(const LoopModel& model);
    ~GraphDevice() override;

    bool refresh(int64_t most_positions) override;
    void* device_memory(int64_t bytes) override { return keep(at::empty({bytes}, on_device_.dtype(at::kByte))); }
    void* host_memory(int64_t bytes) override {
        return keep(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true)));
    }
    int64_t capture(const StepState& state, int64_t rows) override;
    void forget() override {
        graphs_.clear();
        memory_.clear();
    }
    void copy(void* device, const void* host, int64_t bytes) override {
        C10_CUDA_CHECK(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()));
    }
    void count(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts) override {
        C10_CUDA_CHECK(launch_count_context(tokens, num_tokens, first_counted, counts, vocab_, stream()));
    }
    void change(const StepState& state, const StepChanges& changes) override {
        C10_CUDA_CHECK(launch_changes(state, changes, stream()));
    }
    void replay(int64_t graph) override {
        C10_CUDA_CHECK(cudaGraphLaunch(graphs_[static_cast<size_t>(graph)]->graph, stream()));
    }
    void mark(int64_t number) override { C10_CUDA_CHECK(cudaEventRecord(marks_[number], stream())); }
    bool reached(int64_t number) override;
    void wait() override;

private:
    cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(device_); }
    void* keep(at::Tensor memory) { return memory_.emplace_back(std::move(memory)).data_ptr(); }
    Workspace make_workspace(const StepState& state, int64_t rows) const;
    at::Tensor scratch(int64_t bytes) const { return at::empty({bytes}, on_device_.dtype(at::kByte)); }
    void record(const StepState& state, int64_t rows, const Workspace& w, cudaStream_t stream) const;
    void record_layer(size_t i, const StepState& state, int64_t rows, const Workspace& w, cudaStream_t stream) const;
    void write_table();
    std::vector<const void*> captured_addresses() const;
    Norm norm_of(const at::Tensor& weight) const {
        return {weight.scalar_type() == at::kFloat, static_cast<float>(model_.norm_eps)};
    }

    const LoopModel model_;
    const Layers& layers_;
    const AttendFunction attend_;
    const c10::DeviceIndex device_;
    const at::TensorOptions on_device_;
    const int64_t vocab_, hidden_;
    const bool overlaps_;  // kernels of a step: from sm_90 on
    const int64_t sampler_bytes_;

    at::Tensor table_,
        table_image_;       // ModelTable, then a LayerTable for each layer; on the device and, pinned, on the host
    at::Tensor cos_, sin_;  // [P, d / 2]
    std::vector<const void*> captured_;  // where cache and angles lie by the captured graphs
    std::vector<at::Tensor> memory_;
    std::vector<std::unique_ptr<Captured>> graphs_;
    cudaEvent_t marks_[StepLoop::kMostInFlight] = {};
    cudaStream_t side_ = nullptr;  // for captures; not of torch's pool, which the user may have part in
};

GraphDevice::GraphDevice(const LoopModel& model)
    : model_(model),
      layers_(*layers_for(model.embedding.scalar_type())),
      attend_(attend_for(model.embedding.scalar_type())),
      device_(model.embedding.device().index()),
      on_device_(at::TensorOptions().device(model.embedding.device())),
      vocab_(model.head.weight.size(0)),
      hidden_(model.embedding.size(1)),
      overlaps_(attribute(cudaDevAttrComputeCapabilityMajor, device_) >= 9),
      sampler_bytes_(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_)) {
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
    for (cudaEvent_t& mark : marks_) C10_CUDA_CHECK(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming));
    const int64_t bytes = static_cast<int64_t>(sizeof(ModelTable) + model.layers.size() * sizeof(LayerTable));
    table_ = scratch(bytes);
    table_image_ = at::zeros({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
}

GraphDevice::~GraphDevice() {
    for (cudaEvent_t mark : marks_) {
        if (mark) C10_CUDA_CHECK_WARN(cudaEventDestroy(mark));
    }
    C10_CUDA_CHECK_WARN(cudaStreamDestroy(side_));
}

std::vector<const void*> GraphDevice::captured_addresses() const {
    std::vector<const void*> addresses = {cos_.const_data_ptr(), sin_.const_data_ptr()};
    for (const auto* tensors : {&model_.keys, &model_.values}) {
        for (const at::Tensor& tensor : *tensors) addresses.push_back(tensor.const_data_ptr());
    }
    return addresses;
}

bool GraphDevice::refresh(int64_t most_positions) {
    std::tie(cos_, sin_) = model_.rotary(most_positions);
    write_table();
    std::vector<const void*> addresses = captured_addresses();
    if (addresses == captured_) return false;
    captured_ = std::move(addresses);
    return true;
}

// Copied only where something has moved. Nothing is in flight, so the image may be written.
void GraphDevice::write_table() {
    std::vector<unsigned char> now(static_cast<size_t>(table_image_.numel()), 0);
    auto* model = reinterpret_cast<ModelTable*>(now.data());
    auto* layers = reinterpret_cast<LayerTable*>(model + 1);
    model->embed = {model_.embedding.const_data_ptr(), model_.embedding.stride(0)};
    model->head = {model_.norm.const_data_ptr(), matrix_of(model_.head)};
    for (size_t i = 0; i < model_.layers.size(); ++i) {
        const LoopLayer& layer = model_.layers[i];
        layers[i] = {
            {layer.attention_norm.const_data_ptr(), matrix_of(layer.q), matrix_of(layer.k), matrix_of(layer.v)},
            {matrix_of(layer.attention_out)},
            {layer.mlp_norm.const_data_ptr(), matrix_of(layer.gate), matrix_of(layer.up), matrix_of(layer.down)}};
    }
    void* image = table_image_.data_ptr();
    if (std::memcmp(image, now.data(), now.size()) == 0) return;
    std::memcpy(image, now.data(), now.size());
    copy(table_.data_ptr(), image, table_.numel());
}

Workspace GraphDevice::make_workspace(const StepState& state, int64_t rows) const {
    int64_t widest = hidden_, widest_q = 0, attention = 0;
    for (size_t i = 0; i < model_.layers.size(); ++i) {
        const LoopLayer& layer = model_.layers[i];
        widest_q = std::max(widest_q, layer.num_heads * layer.head_dim);
        widest = std::max({widest, widest_q, layer.up.weight.size(0)});
        attention = std::max(attention, attend_scratch_bytes(rows, layer.num_heads, layer.head_dim, state.most_blocks));
    }
    const auto floats = [&](int64_t columns) { return at::empty({rows, columns}, on_device_.dtype(at::kFloat)); };
    Workspace w;
    w.x = floats(hidden_);
    w.q = floats(widest_q);
    w.attended = floats(widest_q);
    w.logits = floats(vocab_);
    w.products = scratch(scratch_bytes(rows, widest, model_.embedding.element_size()));
    w.attention = scratch(attention);
    w.sampler = scratch(sampler_scratch(rows, vocab_, sampler_bytes_) * static_cast<int64_t>(sizeof(float)));
    return w;
}

// Six kernels, of which each may start while the one before it ends.
void GraphDevice::record_layer(size_t i, const StepState& state, int64_t rows, const Workspace& w,
                               cudaStream_t stream) const {
    const LoopLayer& layer = model_.layers[i];
    const LayerTable &table = layer_tables(table_)[i], &image = layer_tables(table_image_)[i];
    const Launch launch{stream, w.products.data_ptr(), overlaps_};
    auto* x = w.x.data_ptr<float>();
    auto* q = w.q.data_ptr<float>();
    auto* attended = w.attended.data_ptr<float>();
    const int64_t heads = layer.num_heads, kv_heads = layer.num_kv_heads, d = layer.head_dim;
    void* keys = model_.keys[i].data_ptr();
    void* values = model_.values[i].data_ptr();

    AttentionIn in = {};
    in.num_tokens = rows;
    in.x = x;
    in.hidden = hidden_;
    in.weights = {image.attention_in, &table.attention_in};
    in.norm = norm_of(layer.attention_norm);
    in.cos = cos_.const_data_ptr<float>();
    in.sin = sin_.const_data_ptr<float>();
    in.positions = state.positions;
    in.slots = state.slots;
    in.heads = heads;
    in.kv_heads = kv_heads;
    in.head_dim = d;
    in.block_size = model_.block_size;
    in.k_cache = keys;
    in.v_cache = values;
    in.q_out = q;
    C10_CUDA_CHECK(layers_.attention_in(in, launch));

    Attend attend = {};
    attend.q = q;
    attend.keys = keys;
    attend.values = values;
    attend.rows = state.rows;
    attend.block_table = state.block_table;
    attend.most_blocks = state.most_blocks;
    attend.num_tokens = rows;
    attend.heads = heads;
    attend.kv_heads = kv_heads;
    attend.d = d;
    attend.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    attend.tiles = attend_tiles(rows, /*most_tokens=*/1, heads / kv_heads);
    attend.out = attended;
    if (attend_splits(attend.tiles, kv_heads, state.most_blocks)) attend.scratch = w.attention.data_ptr();
    C10_CUDA_CHECK(attend_(attend, stream, overlaps_));

    C10_CUDA_CHECK(layers_.attention_out(
        {rows, attended, heads * d, {image.attention_out, &table.attention_out}, hidden_, x}, launch));
    C10_CUDA_CHECK(layers_.mlp({rows,
                                {image.mlp, &table.mlp},
                                norm_of(layer.mlp_norm),
                                layer.gate.weight.defined(),
                                layer.activation,
                                hidden_,
                                layer.up.weight.size(0),
                                x},
                               launch));
}

// The kernels of a step, into a stream. The first one waits for the end of what runs before it: that may be the user's, and
// write weights.
void GraphDevice::record(const StepState& state, int64_t rows, const Workspace& w, cudaStream_t stream) const {
    const ModelTable &table = model_table(table_), &image = model_table(table_image_);
    const Launch first{stream, w.products.data_ptr(), false}, later{stream, w.products.data_ptr(), overlaps_};
    auto* x = w.x.data_ptr<float>();
    auto* logits = w.logits.data_ptr<float>();
    C10_CUDA_CHECK(layers_.embed({rows, state.tokens, {image.embed, &table.embed}, hidden_, x}, first));
    for (size_t i = 0; i < model_.layers.size(); ++i) record_layer(i, state, rows, w, stream);
    C10_CUDA_CHECK(layers_.head(
        {rows, x, nullptr, hidden_, vocab_, {image.head, &table.head}, norm_of(model_.norm), logits}, later));
    C10_CUDA_CHECK(launch_sample_step(logits, vocab_, rows, vocab_, state,
                                      {sampler_bytes_, static_cast<float*>(w.sampler.data_ptr())}, overlaps_, stream));
}

// On a stream of its own, and so that only this thread may not do what a capture forbids: the user's other threads, and their
// streams, notice nothing. A step of rows at rest goes first: it loads the kernels, which a capture must not, and
// shows what is wrong with them where it can still be told.
int64_t GraphDevice::capture(const StepState& state, int64_t rows) {
    auto captured = std::make_unique<Captured>();
    captured->workspace = make_workspace(state, rows);
    C10_CUDA_CHECK(cudaMemsetAsync(state.tokens, 0, static_cast<size_t>(rows) * sizeof(int64_t), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.positions, 0, static_cast<size_t>(rows) * sizeof(int64_t), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.rows, 0, static_cast<size_t>(rows) * sizeof(BatchRow), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.slots, 0xff, static_cast<size_t>(rows) * sizeof(int64_t), stream()));
    record(state, rows, captured->workspace, stream());

    cudaGraph_t graph = nullptr;
    C10_CUDA_CHECK(cudaStreamBeginCapture(side_, cudaStreamCaptureModeThreadLocal));
    try {
        record(state, rows, captured->workspace, side_);
    } catch (...) {
        C10_CUDA_CHECK_WARN(cudaStreamEndCapture(side_, &graph));
        if (graph) C10_CUDA_CHECK_WARN(cudaGraphDestroy(graph));
        throw;
    }
    C10_CUDA_CHECK(cudaStreamEndCapture(side_, &graph));
    const cudaError_t made = cudaGraphInstantiate(&captured->graph, graph, 0);
    C10_CUDA_CHECK_WARN(cudaGraphDestroy(graph));
    C10_CUDA_CHECK(made);
    graphs_.push_back(std::move(captured));
    return static_cast<int64_t>(graphs_.size()) - 1;
}

bool GraphDevice::reached(int64_t number) {
    const cudaError_t state = cudaEventQuery(marks_[number]);
    if (state == cudaErrorNotReady) {
        (void)cudaGetLastError();  // not an error
        return false;
    }
    C10_CUDA_CHECK(state);
    return true;
}

// Called while an exception is on its way, so it throws none: an error of the device comes up with the next call.
void GraphDevice::wait() { C10_CUDA_CHECK_WARN(cudaStreamSynchronize(stream())); }

bool takes(const LoopModel& model) {
    const at::ScalarType dtype = model.embedding.scalar_type();
    if (!layers_for(dtype) || model.block_size != kAttendBlock) return false;
    const auto fits = [](const LoopLayer& layer) { return layer.head_dim % 8 == 0 && layer.head_dim <= kMostHeadDim; };
    return std::all_of(model.layers.begin(), model.layers.end(), fits);
}

}  // namespace

std::unique_ptr<DecodeLoop> make_graph_loop(const LoopModel& model) {
    if (!takes(model)) return nullptr;
    return std::make_unique<StepLoop>(std::make_unique<GraphDevice>(model), model.block_size, model.head.weight.size(0),
                                      kMostRows);
}

}  // namespace demiurgic
