#include "kernels/cuda/decode_step.h"

#include <algorithm>
#include <cmath>

namespace demiurgic::cuda {

namespace {

struct Workspace {
    float* x = nullptr;            // [B, H]
    float* q = nullptr;            // [B, heads * d]
    void* attended = nullptr;      // [B, heads * d] of T
    float* logits = nullptr;       // [B, V]
    Progress* progress = nullptr;  // of the entries that norm, in their order: two of each layer, and the head
    int64_t num_progress = 0;
    void* products = nullptr;
    void* library = nullptr;
    void* attention = nullptr;
    float* sampler = nullptr;
    int64_t bytes = 0;
};

AttendTiles tiles_of(const StepLayer& layer, int64_t rows) {
    return attend_tiles(rows, /*most_tokens=*/1, layer.heads / layer.kv_heads, layer.head_dim);
}

Workspace workspace_of(const StepModel& model, int64_t most_blocks, int64_t rows, void* memory) {
    int64_t widest = model.hidden, widest_q = 0, attention = 0;
    for (const StepLayer& layer : model.layers) {
        widest_q = std::max(widest_q, layer.heads * layer.head_dim);
        widest = std::max({widest, widest_q, layer.inner});
        const AttendTiles tiles = tiles_of(layer, rows);
        if (!attend_splits(tiles, layer.kv_heads, most_blocks)) continue;
        attention = std::max(attention, attend_scratch_bytes(tiles, layer.kv_heads, layer.head_dim, most_blocks));
    }
    Workspace w;
    const auto take = [&](int64_t bytes) -> void* {
        void* part = memory ? static_cast<unsigned char*>(memory) + w.bytes : nullptr;
        w.bytes += (bytes + 255) / 256 * 256;
        return part;
    };
    const auto floats = [&](int64_t count) {
        return static_cast<float*>(take(count * static_cast<int64_t>(sizeof(float))));
    };
    w.x = floats(rows * model.hidden);
    w.q = floats(rows * widest_q);
    w.attended = take(rows * widest_q * model.element_bytes);
    w.logits = floats(rows * model.vocab);
    w.num_progress = (2 * static_cast<int64_t>(model.layers.size()) + 1) * num_progress(rows);
    w.progress = static_cast<Progress*>(take(w.num_progress * static_cast<int64_t>(sizeof(Progress))));
    w.products = take(scratch_bytes(rows, widest, model.element_bytes));
    w.library = take(model.library ? library_scratch_bytes(rows, widest) : 0);
    w.attention = take(attention);
    w.sampler = floats(sampler_scratch(rows, model.vocab, model.sampler_shared_bytes));
    return w;
}

// The first error of launches, or none.
class Errors {
public:
    void add(cudaError_t error) {
        if (first_ == cudaSuccess) first_ = error;
    }
    cudaError_t first() const { return first_; }

private:
    cudaError_t first_ = cudaSuccess;
};

AttentionIn attention_in(const StepModel& model, size_t i, const LayerTable* on_device, const StepState& state,
                         int64_t rows, const Workspace& w) {
    const StepLayer& layer = model.layers[i];
    AttentionIn in = {};
    in.num_tokens = rows;
    in.x = w.x;
    in.hidden = model.hidden;
    in.weights = {model.tables[i].attention_in, &on_device->attention_in};
    in.norm = layer.attention_norm;
    in.cos = model.cos;
    in.sin = model.sin;
    in.positions = state.positions;
    in.slots = state.slots;
    in.heads = layer.heads;
    in.kv_heads = layer.kv_heads;
    in.head_dim = layer.head_dim;
    in.block_size = state.block_size;
    in.k_cache = layer.keys;
    in.v_cache = layer.values;
    in.q_out = w.q;
    return in;
}

Attend attend(const StepLayer& layer, const StepState& state, int64_t rows, const Workspace& w) {
    Attend a = {};
    a.q = w.q;
    a.keys = layer.keys;
    a.values = layer.values;
    a.rows = state.rows;
    a.block_table = state.block_table;
    a.most_blocks = state.most_blocks;
    a.heads = layer.heads;
    a.kv_heads = layer.kv_heads;
    a.d = layer.head_dim;
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(layer.head_dim)));
    a.tiles = tiles_of(layer, rows);
    a.out = w.attended;
    a.rounds = true;
    if (attend_splits(a.tiles, layer.kv_heads, state.most_blocks)) a.scratch = w.attention;
    return a;
}

}  // namespace

int64_t step_workspace_bytes(const StepModel& model, int64_t most_blocks, int64_t rows) {
    return workspace_of(model, most_blocks, rows, nullptr).bytes;
}

std::vector<const void*> captured_addresses(const StepModel& model) {
    std::vector<const void*> addresses = {model.cos, model.sin};
    for (const StepLayer& layer : model.layers) addresses.insert(addresses.end(), {layer.keys, layer.values});
    if (!model.library) return addresses;
    // A bias is looked up, but whether there is one decides what is launched.
    const auto add = [&addresses](const Matrix& matrix) {
        addresses.insert(addresses.end(), {matrix.weight, matrix.bias});
    };
    for (const auto& [attention_in, attention_out, mlp] : model.tables) {
        for (const Matrix& matrix :
             {attention_in.q, attention_in.k, attention_in.v, attention_out.out, mlp.gate, mlp.up, mlp.down}) {
            add(matrix);
        }
    }
    add(model.model.head.head);
    return addresses;
}

cudaError_t launch_step(const StepModel& model, const StepState& state, int64_t rows, void* workspace,
                        cudaStream_t stream) {
    const Workspace w = workspace_of(model, state.most_blocks, rows, workspace);
    const ModelTable* on_device = model.model_on_device;
    const Layers& entries = *model.entries;
    const Launch first{stream, w.products, false, model.library, w.library};
    Launch later = first;
    later.overlaps_previous = model.overlaps;
    const auto norming = [&](size_t number) {
        Launch launch = later;
        launch.progress = w.progress + static_cast<int64_t>(number) * num_progress(rows);
        return launch;
    };
    Errors errors;
    errors.add(entries.embed(
        {rows, state.tokens, {model.model.embed, &on_device->embed}, model.hidden, w.x, w.progress, w.num_progress},
        first));
    for (size_t i = 0; i < model.layers.size(); ++i) {
        const StepLayer& layer = model.layers[i];
        const LayerTable& table = model.tables[i];
        const LayerTable* there = reinterpret_cast<const LayerTable*>(on_device + 1) + i;
        errors.add(entries.attention_in(attention_in(model, i, there, state, rows, w), norming(2 * i)));
        errors.add(model.attend(attend(layer, state, rows, w), stream, model.overlaps));
        errors.add(entries.attention_out({rows,
                                          w.attended,
                                          layer.heads * layer.head_dim,
                                          {table.attention_out, &there->attention_out},
                                          model.hidden,
                                          w.x,
                                          /*is_rounded=*/true},
                                         later));
        errors.add(entries.mlp({rows,
                                {table.mlp, &there->mlp},
                                layer.mlp_norm,
                                layer.is_gated,
                                layer.activation,
                                model.hidden,
                                layer.inner,
                                w.x},
                               norming(2 * i + 1)));
    }
    errors.add(
        entries.head({rows, w.x, model.hidden, model.vocab, {model.model.head, &on_device->head}, model.norm, w.logits},
                     norming(2 * model.layers.size())));
    errors.add(launch_sample_step(w.logits, model.vocab, rows, model.vocab, state,
                                  {model.sampler_shared_bytes, w.sampler}, model.overlaps, stream));
    return errors.first();
}

}  // namespace demiurgic::cuda
