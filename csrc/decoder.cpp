#include "decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>

#include "host_memory.h"

namespace demiurgic {

Decoder::Decoder(const Weights& weights, const Kernels& kernels)
    : weights_(weights),
      kernels_(kernels),
      context_{weights.device(), kernels.entries},
      widest_product_(weights.config().hidden_size),
      widest_q_(0),
      weight_bytes_(weights.bytes_of_step()) {
    if (kernels.make_library) context_.library = kernels.make_library(weights.device());
    for (const LayerConfig& layer : weights.config().layers) {
        widest_q_ = std::max(widest_q_, layer.num_heads * layer.head_dim);
        widest_product_ = std::max({widest_product_, widest_q_, layer.intermediate_size});
    }
}

void Decoder::make_room(int64_t num_tokens, int64_t num_logits) {
    const ModelConfig& config = weights_.config();
    const at::TensorOptions wide = at::TensorOptions().device(weights_.device()).dtype(at::kFloat);
    if (!x_.defined() || x_.size(0) < num_tokens) {
        step_ = {};
        const at::TensorOptions options = kernels_.float_activations ? wide : weights_.embedding.options();
        x_ = q_ = attended_ = at::Tensor();  // first: both at once might not fit
        q_ = empty_of_kept_memory({num_tokens * widest_q_}, options);
        attended_ = empty_of_kept_memory({num_tokens * widest_q_}, options);
        x_ = empty_of_kept_memory({num_tokens, config.hidden_size}, options);  // last: it tells that all are there
    }
    if (!logits_.defined() || logits_.size(0) < num_logits) {
        step_ = {};
        logits_ = at::Tensor();
        last_x_ = at::empty({num_logits, config.hidden_size}, x_.options());
        last_attended_ = at::empty({num_logits * widest_q_}, x_.options());
        logits_ = empty_of_kept_memory({num_logits, config.vocab_size}, wide);  // last, as above
    }
}

// cos and sin of the rotary angles (Su et al., "RoFormer", 2021). The angle is the float32 product of position and
// frequency. Always computed for whole pages of positions, so that no vectorised loop ends elsewhere another time.
void Decoder::extend_rotary(int64_t num_positions) {
    constexpr int64_t page = 1024;
    const ModelConfig& config = weights_.config();
    const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);
    int64_t known = rotary_.cos.defined() ? rotary_.cos.size(0) : 0;
    if (known >= num_positions) return;
    const at::Tensor frequencies = at::from_blob(const_cast<float*>(config.rotary_frequencies.data()),
                                                 {static_cast<int64_t>(config.rotary_frequencies.size())}, options)
                                       .to(weights_.device());
    std::vector<at::Tensor> cos, sin;
    if (known > 0) cos.push_back(rotary_.cos), sin.push_back(rotary_.sin);
    for (; known < num_positions; known += page) {
        const at::Tensor positions = at::arange(known, known + page, options.dtype(at::kLong)).to(weights_.device());
        const at::Tensor angles = positions.to(at::kFloat).unsqueeze(1) * frequencies;
        cos.push_back(angles.cos() * config.rotary_scaling);
        sin.push_back(angles.sin() * config.rotary_scaling);
    }
    rotary_ = {at::cat(cos), at::cat(sin)};
}

Decoder::Rotary Decoder::rotary_at(const Batch& batch) {
    const at::AutoDispatchBelowADInplaceOrView no_bookkeeping;  // of autograd, in making views
    extend_rotary(shape_of(batch).context_length);
    if (batch.rows.size() == 1) {  // positions that follow each other: no copy
        const BatchRow& row = batch.rows.front();
        const int64_t first = row.context_length - row.num_tokens;
        return {rotary_.cos.narrow(0, first, row.num_tokens), rotary_.sin.narrow(0, first, row.num_tokens)};
    }
    return {rotary_.cos.index_select(0, batch.positions), rotary_.sin.index_select(0, batch.positions)};
}

StepShape Decoder::shape_of(const Batch& batch) const {
    StepShape shape{batch.tokens.size(0), 0, widest_product_, 0, weight_bytes_};
    for (const BatchRow& row : batch.rows) shape.context_length = std::max(shape.context_length, row.context_length);
    for (const LayerConfig& layer : weights_.config().layers) shape.head_dim = std::max(shape.head_dim, layer.head_dim);
    return shape;
}

void Decoder::forget() {
    for (at::Tensor* memory :
         {&x_, &q_, &attended_, &last_x_, &last_attended_, &logits_, &context_.scratch, &context_.library_scratch}) {
        *memory = at::Tensor();
    }
    rotary_ = {};
    step_ = {};
}

LoopModel Decoder::loop_model(const KVCache& cache, int64_t block_size) {
    const ModelConfig& config = weights_.config();
    std::vector<LoopLayer> layers;
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
        const LayerWeights& layer = weights_.layers[i];
        const LayerConfig& shape = config.layers[i];
        layers.push_back({layer.attention_norm, layer.q, layer.k, layer.v, layer.attention_out, layer.mlp_norm,
                          layer.gate, layer.up, layer.down, shape.activation, shape.num_heads, shape.num_kv_heads,
                          shape.head_dim});
    }
    const auto rotary = [this](int64_t num_positions) {
        extend_rotary(num_positions);
        return std::pair(rotary_.cos, rotary_.sin);
    };
    return {weights_.embedding, std::move(layers), weights_.norm, weights_.head, config.rms_norm_eps,
            cache.keys,         cache.values,      block_size,    rotary,        context_.library};
}

Decoder::StepTensors& Decoder::tensors_of(const Batch& batch) {
    const int64_t num_tokens = batch.tokens.size(0), num_logits = batch.logit_rows.size(0);
    const at::AutoDispatchBelowADInplaceOrView no_bookkeeping;  // of autograd, in making views
    make_room(num_tokens, num_logits);
    const bool as_before = step_.x.defined() && step_.x.size(0) == num_tokens && step_.logits.size(0) == num_logits &&
                           step_.last_x.is_same(step_.x) == batch.all_logits;
    if (!as_before) step_ = make_tensors(batch);
    return step_;
}

Decoder::StepTensors Decoder::make_tensors(const Batch& batch) const {
    const int64_t num_tokens = batch.tokens.size(0), num_logits = batch.logit_rows.size(0);
    StepTensors step;
    step.x = x_.narrow(0, 0, num_tokens);
    step.logits = logits_.narrow(0, 0, num_logits);
    std::vector<at::Tensor>&q = step.q, &attended = step.attended;
    for (const LayerConfig& layer : weights_.config().layers) {
        const auto view = [&](const at::Tensor& buffer) {
            return buffer.narrow(0, 0, num_tokens * layer.num_heads * layer.head_dim)
                .view({num_tokens, layer.num_heads, layer.head_dim});
        };
        const bool as_before = !q.empty() && q.back().size(1) == layer.num_heads && q.back().size(2) == layer.head_dim;
        q.push_back(as_before ? q.back() : view(q_));
        attended.push_back(as_before ? attended.back() : view(attended_));
    }
    step.wide_attended = attended.back().flatten(1);
    const int64_t width = step.wide_attended.size(1);
    step.last_x = batch.all_logits ? step.x : last_x_.narrow(0, 0, num_logits);
    step.last_attended = batch.all_logits ? step.wide_attended
                                          : last_attended_.narrow(0, 0, num_logits * width).view({num_logits, width});
    return step;
}

at::Tensor Decoder::decode(const Batch& batch, KVCache& cache, const Poll& poll) {
    const ModelConfig& config = weights_.config();
    const double eps = config.rms_norm_eps;
    StepTensors& step = tensors_of(batch);
    const Rotary rotary = rotary_at(batch);
    // Behind the last layer's attention, only tokens whose logits are wanted are looked at again.
    const bool selects = !batch.all_logits, no_logits = batch.logit_rows.size(0) == 0;
    kernels_.prepare(context_, shape_of(batch));
    kernels_.run(context_, [&](Context& context) {
        kernels_.embed(context, {batch.tokens, weights_.embedding, step.x});
        for (size_t i = 0; i < weights_.layers.size(); ++i) {
            if (context.is_first) poll();
            const bool is_last = i + 1 == weights_.layers.size();
            const LayerConfig& shape = config.layers[i];
            const LayerWeights& layer = weights_.layers[i];
            const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
            kernels_.attention_in(context, {step.x, layer.attention_norm, eps, layer.q, layer.k, layer.v, rotary.cos,
                                            rotary.sin, batch.slots, cache.keys[i], cache.values[i], step.q[i]});
            if (is_last && no_logits) return;
            kernels_.attend(context, {step.q[i], cache.keys[i], cache.values[i], batch.rows, batch.block_table,
                                      batch.block_runs, scale, step.attended[i]});
            if (is_last && selects) {
                kernels_.select_rows(context, {step.x, batch.logit_rows, step.last_x});
                kernels_.select_rows(context, {step.wide_attended, batch.logit_rows, step.last_attended});
            }
            at::Tensor& rows = is_last ? step.last_x : step.x;
            kernels_.attention_out(context,
                                   {is_last ? step.last_attended : step.attended[i], layer.attention_out, rows});
            kernels_.mlp(context, {layer.mlp_norm, eps, layer.gate, layer.up, layer.down, shape.activation, rows});
        }
        kernels_.head(context, {step.last_x, weights_.norm, eps, weights_.head, step.logits});
    });
    return step.logits;
}

}  // namespace demiurgic
