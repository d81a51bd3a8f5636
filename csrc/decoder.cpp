#include "decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <cmath>

namespace demiurgic {

namespace {

// cos and sin of the rotary angles (Su et al., "RoFormer", 2021) at the batch's positions, [N, d / 2] float32. The angle
// is the float32 product of position and frequency.
struct Rotary {
    Rotary(const ModelConfig& config, const at::Tensor& positions) {
        const at::Tensor on_host = at::from_blob(const_cast<float*>(config.rotary_frequencies.data()),
                                                 {static_cast<int64_t>(config.rotary_frequencies.size())},
                                                 at::TensorOptions().dtype(at::kFloat));
        const at::Tensor frequencies = on_host.to(positions.device());
        const at::Tensor angles = positions.to(at::kFloat).unsqueeze(1) * frequencies;
        cos = angles.cos() * config.rotary_scaling;
        sin = angles.sin() * config.rotary_scaling;
    }

    at::Tensor cos, sin;
};

}  // namespace

at::Tensor decode(const Weights& weights, const Batch& batch, KVCache& cache, const Kernels& kernels,
                  const Poll& poll) {
    const ModelConfig& config = weights.config();
    const double eps = config.rms_norm_eps;
    const at::TensorOptions options = weights.embedding.options();
    const int64_t num_tokens = batch.tokens.size(0), num_logits = batch.logit_rows.size(0);
    const Rotary rotary(config, batch.positions);
    at::Tensor x = at::empty({num_tokens, config.hidden_size}, options);
    at::Tensor logits = at::empty({num_logits, config.vocab_size}, options.dtype(at::kFloat));

    Context context{weights.device()};
    kernels.run(context, [&] {
        kernels.embed(context, {batch.tokens, weights.embedding, x});
        for (size_t i = 0; i < weights.layers.size(); ++i) {
            poll();
            const LayerConfig& shape = config.layers[i];
            const LayerWeights& layer = weights.layers[i];
            at::Tensor q = at::empty({num_tokens, shape.num_heads, shape.head_dim}, options);
            at::Tensor attended = at::empty_like(q);
            const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
            kernels.attention_in(context, {x, layer.attention_norm, eps, layer.q, layer.k, layer.v, rotary.cos,
                                           rotary.sin, batch.slots, cache.keys[i], cache.values[i], q});
            kernels.attend(context,
                           {q, cache.keys[i], cache.values[i], batch.rows, batch.block_table, scale, attended});
            kernels.attention_out(context, {attended, layer.attention_out, x});
            kernels.mlp(context, {layer.mlp_norm, eps, layer.gate, layer.up, layer.down, shape.activation, x});
        }
        if (num_logits > 0) kernels.head(context, {x, batch.logit_rows, weights.norm, eps, weights.head, logits});
    });
    return logits;
}

}  // namespace demiurgic
