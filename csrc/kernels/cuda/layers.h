#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/product_library.h"
#include "kernels/types.h"

// The decoder's entries but attend, over plain pointers to device memory: they know no torch. Activations are float32; T is
// the type of weights and cache. Each launcher returns what its launches reported; it allocates nothing, waits for nothing
// and reads no number that changes from step to step, so a step can be captured once and replayed.
// N: tokens, H: hidden size, d: head dimension, I: intermediate size, V: vocabulary, R: rows of logits.
namespace demiurgic::cuda {

// A product's weights where they lie, row-major [rows, columns] of T.
struct Matrix {
    const void* weight;  // null: no such product
    int64_t stride;      // elements from row to row
    const void* bias;    // [rows] of T; null: none
};

// The parameters of each entry.
struct EmbedWeights {
    const void* table;  // [V, H]
    int64_t stride;     // elements from row to row
};
struct AttentionInWeights {
    const void* norm;  // [H]
    Matrix q, k, v;
};
struct AttentionOutWeights {
    Matrix out;
};
struct MlpWeights {
    const void* norm;  // [H]
    Matrix gate, up, down;
};
struct HeadWeights {
    const void* norm;  // [H]
    Matrix head;
};

// Weights as a kernel finds them: by `value`, or, where there is one, in a `table` in device memory that outlives a
// captured step: a parameter that has moved needs one small copy and no new capture. `table` must not change what the
// launch depends on: whether there is a gate.
template <class Weights>
struct Live {
    Weights value;
    const Weights* table = nullptr;  // of device memory
};

// A norm's number format and epsilon.
struct Norm {
    bool is_float;  // float32, else T
    float eps;
};

// What the blocks of a kernel count where they prepare rows for each other (PreparedRows in operands.cuh): rows that some of
// them have taken, and rows that are done.
struct Progress {
    unsigned taken, done;
};

struct Embed {
    int64_t num_tokens;     // N
    const int64_t* tokens;  // [N], all in the vocabulary
    Live<EmbedWeights> weights;
    int64_t hidden;
    float* out;                    // [N, H]
    Progress* progress = nullptr;  // [num_progress], of the entries that follow: set to zero
    int64_t num_progress = 0;
};

struct AttentionIn {
    int64_t num_tokens;  // N
    const float* x;      // [N, H]
    int64_t hidden;
    Live<AttentionInWeights> weights;
    Norm norm;
    const float* cos;          // [N, d / 2], or by position
    const float* sin;          // the same
    const int64_t* positions;  // [N]; null: cos and sin are of the tokens, in order
    const int64_t* slots;      // [N]: block * block_size + offset; -1: of a row at rest, whose key and value go nowhere
    int64_t heads, kv_heads, head_dim, block_size;
    void* k_cache;  // [blocks, kv_heads, block_size, d] of T
    void* v_cache;  // [blocks, kv_heads, block_size, d] of T
    float* q_out;   // [N, heads, d]
};

// x += out(attended)
struct AttentionOut {
    int64_t num_tokens;    // N
    const void* attended;  // [N, columns]
    int64_t columns;       // heads * d
    Live<AttentionOutWeights> weights;
    int64_t hidden;
    float* x;                 // [N, H]
    bool is_rounded = false;  // attended, as the product takes it: of T; else float32
};

// x += down(activation(gate(norm(x))) * up(norm(x))), or down(activation(up(norm(x)))) where there is no gate
struct Mlp {
    int64_t num_tokens;  // N
    Live<MlpWeights> weights;
    Norm norm;
    bool is_gated;
    Activation activation;
    int64_t hidden, inner;  // H, I
    float* x;               // [N, H]
};

struct Head {
    int64_t num_rows;  // R
    const float* x;    // [R, H]
    int64_t hidden, vocab;
    Live<HeadWeights> weights;
    Norm norm;
    float* logits;  // [R, V]
};

// Where and how an entry's kernels run.
struct Launch {
    cudaStream_t stream;
    void* scratch;  // scratch_bytes, aligned to 256; free for others between two entries of a stream
    // Programmatic dependent launch: weights may be read while the stream's kernel before this one still runs. For entries
    // behind another one of the same step only, since nothing else promises that it leaves the weights alone.
    bool overlaps_previous = false;
    // Null: our own kernels for any number of rows. Else it multiplies where there are many, by the weights' own `value`s,
    // whatever their table says.
    ProductLibrary* library = nullptr;
    void* library_scratch = nullptr;  // library_scratch_bytes, as scratch
    // [num_progress(rows)], zero, of this entry alone: beyond 16 rows the kernel of the entry's first product norms the rows as well.
    // Null: a kernel of its own does it before, and so it is where the library multiplies.
    Progress* progress = nullptr;
};

// The entries for one type of weights.
struct Layers {
    cudaError_t (*embed)(const Embed&, const Launch&);
    cudaError_t (*attention_in)(const AttentionIn&, const Launch&);
    cudaError_t (*attention_out)(const AttentionOut&, const Launch&);
    cudaError_t (*mlp)(const Mlp&, const Launch&);
    cudaError_t (*head)(const Head&, const Launch&);
};
extern const Layers kFloat32Layers, kBFloat16Layers, kFloat16Layers;

// For entries of up to `rows` rows and products of up to `widest` columns.
int64_t scratch_bytes(int64_t rows, int64_t widest, int64_t element_bytes);
int64_t library_scratch_bytes(int64_t rows, int64_t widest);

// Of an entry of `rows` rows.
int64_t num_progress(int64_t rows);

}  // namespace demiurgic::cuda
