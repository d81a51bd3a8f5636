#pragma once

#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/layers.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/step_state.h"

// The kernels of a step of plain decoding, one token a row, over plain pointers: what is captured.
namespace demiurgic::cuda {

// Where a model's parameters lie.
struct LayerTable {
    AttentionInWeights attention_in;
    AttentionOutWeights attention_out;
    MlpWeights mlp;
};
struct ModelTable {
    EmbedWeights embed;
    HeadWeights head;
};

struct StepLayer {
    Norm attention_norm, mlp_norm;
    int64_t heads, kv_heads, head_dim, inner;
    bool is_gated;
    Activation activation;
    void* keys;  // [blocks, kv_heads, block_size, d] of T
    void* values;
};

// A model as its steps are made of it: all of this is the same for each replay. The tables are there twice: on the host for
// the launches, and in device memory, where a replay finds what has moved since.
struct StepModel {
    const Layers* entries;
    cudaError_t (*attend)(const Attend&, cudaStream_t, bool overlaps_previous);
    std::vector<StepLayer> layers;
    Norm norm;
    int64_t hidden, vocab, element_bytes;
    const float* cos;  // [positions, d / 2]
    const float* sin;
    ModelTable model;
    std::vector<LayerTable> tables;     // by layer
    const ModelTable* model_on_device;  // then a LayerTable for each layer
    int64_t sampler_shared_bytes;       // that a block of the sampler may ask for
    bool overlaps;                      // kernels of a step: from sm_90 on
    ProductLibrary* library;  // null: none; else the graph holds the addresses of the weights that it multiplies
};

// What a step of `rows` rows of up to `most_blocks` blocks writes to beside the state and the cache: one piece of memory,
// aligned to 256, of which the next step needs nothing.
int64_t step_workspace_bytes(const StepModel& model, int64_t most_blocks, int64_t rows);

// What the launches of a step hold the addresses of: captured, they are of no use once something has moved. Parameters are not
// among it, since kernels find them in the tables; those that a library multiplies are.
std::vector<const void*> captured_addresses(const StepModel& model);

// Launches the step: the embedding, at most six kernels a layer whatever the number of rows, the head, the sampler; more only
// where a library multiplies. Each kernel but the first may start while the one before it ends; what runs before the first
// may be the user's, and write weights.
cudaError_t launch_step(const StepModel& model, const StepState& state, int64_t rows, void* workspace,
                        cudaStream_t stream);

}  // namespace demiurgic::cuda
