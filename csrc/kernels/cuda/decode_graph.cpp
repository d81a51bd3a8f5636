#include "kernels/cuda/decode_graph.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/step_changes.h"
#include "kernels/cuda/step_loop.h"

namespace demiurgic {

namespace {

using namespace cuda;

constexpr int64_t kMostRows = 256;

const Layers* layers_for(at::ScalarType dtype) {
    return dtype == at::kFloat      ? &kFloat32Layers
           : dtype == at::kBFloat16 ? &kBFloat16Layers
           : dtype == at::kHalf     ? &kFloat16Layers
                                    : nullptr;
}

auto attend_for(at::ScalarType dtype) {
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

// Programmatic dependent launch. The code decides, not the device: what was compiled for older ones does not wait.
bool overlaps_on(c10::DeviceIndex device) {
    const c10::cuda::CUDAGuard guard(device);
    return code_for_current_device() >= 90;
}

// A graph that can be launched.
struct Captured {
    cudaGraphExec_t graph = nullptr;

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
    void* device_memory(int64_t count) override { return keep(bytes(count)); }
    void* host_memory(int64_t count) override { return keep(pinned_bytes(count)); }
    int64_t workspace_bytes(int64_t rows, int64_t most_blocks) override {
        return step_workspace_bytes(step_model(), most_blocks, rows);
    }
    int64_t capture(const StepState& state, int64_t rows, void* workspace) override;
    void forget() override {
        graphs_.clear();
        memory_.clear();
    }
    void copy(void* device, const void* host, int64_t count) override {
        C10_CUDA_CHECK(cudaMemcpyAsync(device, host, static_cast<size_t>(count), cudaMemcpyHostToDevice, stream()));
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
    at::Tensor bytes(int64_t count) const { return at::empty({count}, on_device_); }
    static at::Tensor pinned_bytes(int64_t count) {
        return at::zeros({count}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
    }
    void* keep(at::Tensor memory) { return memory_.emplace_back(std::move(memory)).data_ptr(); }
    Norm norm_of(const at::Tensor& weight) const {
        return {weight.scalar_type() == at::kFloat, static_cast<float>(model_.norm_eps)};
    }
    StepModel step_model() const;
    void write_table();
    template <class Launches>
    cudaError_t capture_once(Launches launches, Captured& captured);

    const LoopModel model_;
    const c10::DeviceIndex device_;
    const at::TensorOptions on_device_;  // bytes
    const int64_t vocab_;
    const bool overlaps_;  // kernels of a step
    const int64_t sampler_bytes_;

    at::Tensor table_, table_image_;     // ModelTable, then a LayerTable for each layer; and what was copied there
    at::Tensor cos_, sin_;               // [P, d / 2]
    std::vector<const void*> captured_;  // what captured graphs hold the addresses of
    std::vector<at::Tensor> memory_;
    std::vector<std::unique_ptr<Captured>> graphs_;
    cudaEvent_t marks_[StepLoop::kMostInFlight] = {};
    cudaStream_t side_ = nullptr;  // for captures; not of torch's pool, where the user may have one
};

GraphDevice::GraphDevice(const LoopModel& model)
    : model_(model),
      device_(model.embedding.device().index()),
      on_device_(at::TensorOptions().device(model.embedding.device()).dtype(at::kByte)),
      vocab_(model.head.weight.size(0)),
      overlaps_(overlaps_on(device_)),
      sampler_bytes_(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_)) {
    const c10::cuda::CUDAGuard guard(device_);  // streams and events are the current device's
    const auto count = static_cast<int64_t>(sizeof(ModelTable) + model.layers.size() * sizeof(LayerTable));
    table_ = bytes(count);
    table_image_ = pinned_bytes(count);
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
    for (cudaEvent_t& mark : marks_) C10_CUDA_CHECK(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming));
}

GraphDevice::~GraphDevice() {
    for (cudaEvent_t mark : marks_) C10_CUDA_CHECK_WARN(cudaEventDestroy(mark));
    C10_CUDA_CHECK_WARN(cudaStreamDestroy(side_));
}

// ---- where things lie -------------------------------------------------------------------------------------------------

bool GraphDevice::refresh(int64_t most_positions) {
    std::tie(cos_, sin_) = model_.rotary(most_positions);
    write_table();
    std::vector<const void*> addresses = captured_addresses(step_model());
    if (addresses == captured_) return false;
    captured_ = std::move(addresses);
    return true;
}

// Copied only where something has moved. Nothing is in flight, so the image may be written.
void GraphDevice::write_table() {
    const StepModel now = step_model();
    std::vector<unsigned char> image(static_cast<size_t>(table_image_.numel()));
    std::memcpy(image.data(), &now.model, sizeof(ModelTable));
    std::memcpy(image.data() + sizeof(ModelTable), now.tables.data(), now.tables.size() * sizeof(LayerTable));
    if (std::memcmp(table_image_.data_ptr(), image.data(), image.size()) == 0) return;
    std::memcpy(table_image_.data_ptr(), image.data(), image.size());
    copy(table_.data_ptr(), table_image_.data_ptr(), table_.numel());
}

StepModel GraphDevice::step_model() const {
    StepModel step = {};
    step.entries = layers_for(model_.embedding.scalar_type());
    step.attend = attend_for(model_.embedding.scalar_type());
    step.norm = norm_of(model_.norm);
    step.hidden = model_.embedding.size(1);
    step.vocab = vocab_;
    step.element_bytes = static_cast<int64_t>(model_.embedding.element_size());
    step.cos = cos_.const_data_ptr<float>();
    step.sin = sin_.const_data_ptr<float>();
    step.model.embed = {model_.embedding.const_data_ptr(), model_.embedding.stride(0)};
    step.model.head = {model_.norm.const_data_ptr(), matrix_of(model_.head)};
    step.model_on_device = static_cast<const ModelTable*>(table_.const_data_ptr());
    step.sampler_shared_bytes = sampler_bytes_;
    step.overlaps = overlaps_;
    step.library = model_.library.get();
    for (size_t i = 0; i < model_.layers.size(); ++i) {
        const LoopLayer& layer = model_.layers[i];
        step.layers.push_back({norm_of(layer.attention_norm), norm_of(layer.mlp_norm), layer.num_heads,
                               layer.num_kv_heads, layer.head_dim, layer.up.weight.size(0), layer.gate.weight.defined(),
                               layer.activation, model_.keys[i].data_ptr(), model_.values[i].data_ptr()});
        LayerTable& table = step.tables.emplace_back();
        table.attention_in = {layer.attention_norm.const_data_ptr(), matrix_of(layer.q), matrix_of(layer.k),
                              matrix_of(layer.v)};
        table.attention_out = {matrix_of(layer.attention_out)};
        table.mlp = {layer.mlp_norm.const_data_ptr(), matrix_of(layer.gate), matrix_of(layer.up),
                     matrix_of(layer.down)};
    }
    return step;
}

// ---- graphs -----------------------------------------------------------------------------------------------------------

// On a stream of its own, and so that only this thread may not do what a capture forbids. Who waits for the whole device on
// another thread meanwhile (torch.cuda.synchronize) still breaks it, and gets an error; so it is tried again. A step of rows
// at rest goes first: it loads the kernels, which a capture must not, and shows what is wrong with them where it can still
// be told.
int64_t GraphDevice::capture(const StepState& state, int64_t rows, void* workspace) {
    const StepModel model = step_model();
    auto captured = std::make_unique<Captured>();
    const auto count = static_cast<size_t>(rows);
    C10_CUDA_CHECK(cudaMemsetAsync(state.tokens, 0, count * sizeof(int64_t), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.positions, 0, count * sizeof(int64_t), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.rows, 0, count * sizeof(BatchRow), stream()));
    C10_CUDA_CHECK(cudaMemsetAsync(state.slots, 0xff, count * sizeof(int64_t), stream()));
    C10_CUDA_CHECK(launch_step(model, state, rows, workspace, stream()));

    constexpr int tries = 5;
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < tries; ++i) {
        error = capture_once([&] { return launch_step(model, state, rows, workspace, side_); }, *captured);
        if (error == cudaSuccess) break;
        (void)cudaGetLastError();  // or the next launch would be blamed for it
    }
    C10_CUDA_CHECK(error);
    graphs_.push_back(std::move(captured));
    return static_cast<int64_t>(graphs_.size()) - 1;
}

// What `launches` puts on side_, as a graph.
template <class Launches>
cudaError_t GraphDevice::capture_once(Launches launches, Captured& captured) {
    const cudaError_t begun = cudaStreamBeginCapture(side_, cudaStreamCaptureModeThreadLocal);
    if (begun != cudaSuccess) return begun;
    const cudaError_t launched = launches();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(side_, &graph);
    const bool is_whole = launched == cudaSuccess && ended == cudaSuccess;
    const cudaError_t made = is_whole ? cudaGraphInstantiate(&captured.graph, graph, 0) : cudaSuccess;
    if (graph) C10_CUDA_CHECK_WARN(cudaGraphDestroy(graph));
    return launched != cudaSuccess ? launched : ended != cudaSuccess ? ended : made;
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
    if (!layers_for(model.embedding.scalar_type()) || model.block_size != kAttendBlock) return false;
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
