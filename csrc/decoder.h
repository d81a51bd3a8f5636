#pragma once

#include <functional>
#include <vector>

#include "batch.h"
#include "kv_cache.h"
#include "weights.h"

namespace demiurgic {

// Asked between layers: throws to interrupt the step.
using Poll = std::function<void()>;

// Batch to logits, layer by layer. Owns the activations, which are made once and grow with the largest step.
class Decoder {
public:
    Decoder(const Weights& weights, const Kernels& kernels);

    // The logits [R, V] float32 of the batch's `logit_rows`, valid until the next step; keys and values of all its
    // tokens go to the cache.
    at::Tensor decode(const Batch& batch, KVCache& cache, const Poll& poll);

    // For a device that decodes by itself; it refers to this decoder, its weights and `cache`.
    LoopModel loop_model(const KVCache& cache, int64_t block_size);

    // Gives its memory back, until the next step.
    void forget();

private:
    struct Rotary {
        at::Tensor cos, sin;  // [N, d / 2] float32
    };

    // What one step reads and writes of the decoder's memory: views of it.
    struct StepTensors {
        at::Tensor x;                         // [N, H]
        std::vector<at::Tensor> q, attended;  // by layer, [N, heads, d]
        at::Tensor wide_attended;             // of the last layer, [N, heads * d]
        at::Tensor last_x, last_attended;     // of the tokens whose logits are wanted, [R, H] and [R, heads * d]
        at::Tensor logits;                    // [R, V] float32
    };

    // Mostly those of the step before, which had as many tokens.
    StepTensors& tensors_of(const Batch& batch);
    StepTensors make_tensors(const Batch& batch) const;
    void make_room(int64_t num_tokens, int64_t num_logits);
    void extend_rotary(int64_t num_positions);
    Rotary rotary_at(const Batch& batch);
    StepShape shape_of(const Batch& batch) const;

    const Weights& weights_;
    const Kernels& kernels_;
    Context context_;
    Rotary rotary_;                      // of all positions seen so far, [P, d / 2]
    at::Tensor x_, q_, attended_;        // [most tokens, widest]
    at::Tensor last_x_, last_attended_;  // of the tokens whose logits are wanted, [most rows, widest]
    at::Tensor logits_;                  // [most rows, V] float32
    StepTensors step_;                   // of the last step; undefined where that memory is no more
    int64_t widest_product_, widest_q_;  // over all layers: most columns of a product; most heads * head_dim
    int64_t weight_bytes_;               // that a step reads
};

}  // namespace demiurgic
