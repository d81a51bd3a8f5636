#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/decode_loop.h"
#include "kernels/types.h"

// The table of kernels: one coarse entry for each part of a layer. The reference (reference.cpp, plain ATen) has every
// entry on every device; a device's own file overlays the entries that it does faster. Outputs are preallocated by the
// caller. N: tokens of the step, H: hidden size, d: head dimension, V: vocabulary, R: rows whose logits are wanted.
namespace demiurgic {

namespace cpu {
struct Entries;
struct Member;
}  // namespace cpu

namespace cuda {
struct AttendPlan;
class ProductLibrary;
}  // namespace cuda

// A matrix product by live weights: x @ weight^T + bias.
struct Linear {
    at::Tensor weight;  // [out, in]
    at::Tensor bias;    // [out]; undefined: none
};

// What a kernel runs in: kept by its owner from step to step, copied for each thread of a step.
struct Context {
    at::Device device;
    const cpu::Entries* entries = nullptr;  // of the CPU's own kernels
    int num_threads = 1;
    at::Tensor scratch = {};              // bytes that kernels write to, made by prepare
    int64_t own_scratch = 0;              // bytes of it that belong to each thread, behind the shared ones
    const cpu::Member* member = nullptr;  // this thread, where a team of threads walks the step
    bool is_first = true;                 // of the team: the thread that polls
    bool weights_in_cache = false;        // see cpu::Member
    std::shared_ptr<cuda::AttendPlan> attend_plan = {};  // of CUDA's own attention
    std::shared_ptr<cuda::ProductLibrary> library = {};  // of Kernels::make_library
    at::Tensor library_scratch = {};                     // bytes that it and its entries write to, made by prepare
};

struct EmbedArgs {
    const at::Tensor& tokens;  // [N] int64, checked to lie in the vocabulary
    const at::Tensor& table;   // [V, H]
    at::Tensor& out;           // [N, H]
};

// Norm, q/k/v products, rotary embedding; keys and values go to the cache.
struct AttentionInArgs {
    const at::Tensor& x;     // [N, H]
    const at::Tensor& norm;  // [H]
    double norm_eps;
    const Linear& q;          // [heads * d, H]
    const Linear& k;          // [kv_heads * d, H]
    const Linear& v;          // [kv_heads * d, H]
    const at::Tensor& cos;    // [N, d / 2] float32
    const at::Tensor& sin;    // [N, d / 2] float32
    const at::Tensor& slots;  // [N] int64: block * block_size + offset
    at::Tensor& k_cache;      // [blocks, kv_heads, block_size, d]
    at::Tensor& v_cache;      // [blocks, kv_heads, block_size, d]
    at::Tensor& q_out;        // [N, heads, d]
};

// Causal softmax attention of each token over its own sequence in the cache; query head h reads key head
// h / (heads / kv_heads).
struct AttendArgs {
    const at::Tensor& q;                // [N, heads, d]
    const at::Tensor& k_cache;          // [blocks, kv_heads, block_size, d]
    const at::Tensor& v_cache;          // [blocks, kv_heads, block_size, d]
    const std::vector<BatchRow>& rows;  // S rows
    const at::Tensor& block_table;      // [S, most blocks] int64, filled up with 0
    // S: what block_table says, on the host
    const std::vector<std::vector<BlockRun>>& block_runs;
    double scale;
    at::Tensor& out;  // [N, heads, d]
};

// x += out(attended)
struct AttentionOutArgs {
    const at::Tensor& attended;  // [N, heads, d] or [N, heads * d]
    const Linear& out;           // [H, heads * d]
    at::Tensor& x;               // [N, H]
};

// x += down(activation(gate(norm(x))) * up(norm(x))), or down(activation(up(norm(x)))) where gate has no weight
struct MlpArgs {
    const at::Tensor& norm;  // [H]
    double norm_eps;
    const Linear& gate;  // [I, H]
    const Linear& up;    // [I, H]
    const Linear& down;  // [H, I]
    Activation activation;
    at::Tensor& x;  // [N, H]
};

// out[r] = from[rows[r]]
struct SelectRowsArgs {
    const at::Tensor& from;  // [N, W]
    const at::Tensor& rows;  // [R] int64, indices into N
    at::Tensor& out;         // [R, W]
};

struct HeadArgs {
    const at::Tensor& x;     // [R, H]
    const at::Tensor& norm;  // [H]
    double norm_eps;
    const Linear& head;  // [V, H]
    at::Tensor& logits;  // [R, V] float32
};

struct SampleArgs {
    const at::Tensor& logits;            // [R, V] float32, as the model gave them
    const std::vector<SampleRow>& rows;  // [R]
    bool want_logprobs;
    std::vector<Sample>& samples;  // [R]
};

// The log-softmax of `logits` at one token a row, by the arithmetic of the sampler: the bits of Sample::logprob.
struct LogProbabilityArgs {
    const at::Tensor& logits;  // [R, V] float32, as the model gave them
    const at::Tensor& token;   // [R] int64
    at::Tensor& logprob;       // [R] float32; nan where a logit of the row is NaN or +inf, or all are -inf
};

// For each tensor a number that stands for its values in row-major order, whatever its strides: another one where a
// single element has other bits. Tables differ in the number that they give.
struct ChecksumArgs {
    const std::vector<at::Tensor>& tensors;
    std::vector<uint64_t>& sums;  // empty at first
};

// A layer of a decoder, and all of it, as a device needs them to decode by itself (decode_loop.h).
struct LoopLayer {
    const at::Tensor& attention_norm;  // [H]
    const Linear& q;
    const Linear& k;
    const Linear& v;
    const Linear& attention_out;
    const at::Tensor& mlp_norm;  // [H]
    const Linear& gate;
    const Linear& up;
    const Linear& down;
    Activation activation;
    int64_t num_heads, num_kv_heads, head_dim;
};
struct LoopModel {
    const at::Tensor& embedding;  // [V, H]
    std::vector<LoopLayer> layers;
    const at::Tensor& norm;  // [H]
    const Linear& head;      // [V, H]
    double norm_eps;
    const std::vector<at::Tensor>& keys;    // the cache, by layer; other tensors after it has grown
    const std::vector<at::Tensor>& values;  // [blocks, kv_heads, block_size, d]
    int64_t block_size;
    // cos and sin of the rotary angles of this many positions or more, [P, d / 2] float32; valid until it is asked again.
    std::function<std::pair<at::Tensor, at::Tensor>(int64_t)> rotary;
    std::shared_ptr<cuda::ProductLibrary> library;  // of the decoder's Context
};

template <class Args>
struct Kernel {
    void (*function)(Context&, const Args&);
    const char* implementation;  // "reference", "cuda", ...

    void operator()(Context& context, const Args& args) const { function(context, args); }
};

struct Kernels {
    // Makes the scratch memory and settles the number of threads of the next step.
    void (*prepare)(Context&, const StepShape&);
    // Enters the device's team once for a whole step: every thread runs `loop` with a context of its own, in which all
    // entries but the last three are called; those have threads of their own. Throws what a thread threw.
    void (*run)(Context&, const std::function<void(Context&)>& loop);
    Kernel<EmbedArgs> embed;
    Kernel<AttentionInArgs> attention_in;
    Kernel<AttendArgs> attend;
    Kernel<AttentionOutArgs> attention_out;
    Kernel<MlpArgs> mlp;
    Kernel<SelectRowsArgs> select_rows;
    Kernel<HeadArgs> head;
    Kernel<SampleArgs> sample;
    Kernel<LogProbabilityArgs> log_probability;
    Kernel<ChecksumArgs> checksum;

    // A row's bits do not depend on how many tokens and rows are computed with it. What promises the same result however it
    // is computed asks for this.
    bool exact_rows = false;
    // What multiplies many rows in another order of summation; a null pointer: nothing does.
    std::shared_ptr<cuda::ProductLibrary> (*make_library)(at::Device) = nullptr;
    bool float_activations = false;  // x, q and attended are float32 whatever the weights are
    CacheLayout cache_layout = CacheLayout::by_block;
    const cpu::Entries* entries = nullptr;  // for Context::entries
    // What makes steps of plain decoding without the host between them, or null; a null pointer: nothing does.
    std::unique_ptr<DecodeLoop> (*decode_loop)(const LoopModel&) = nullptr;

    std::map<std::string, std::string> implementations() const;  // by entry
};

// The fastest table that this build and machine have for weights of `dtype` on `device`: of those that keep the bits of a row
// as far as they can, or, not `exact`, of all. DEMIURGIC_KERNELS=reference forces
// the reference, the name of an instruction set (see isa_names) that set on the CPU. Throws std::invalid_argument for
// another value of DEMIURGIC_KERNELS.
const Kernels& kernels_for(at::Device device, at::ScalarType dtype, bool exact = true);

// The instruction sets that this build has kernels for and this CPU can run, fastest first.
std::vector<std::string> isa_names();

const Kernels& reference_kernels();

// The reference where it is not the base of a device's own kernels: it reads a run of blocks where it lies.
const Kernels& reference_alone();

// Bytes that can still be allocated on `device`, as far as it tells.
int64_t free_bytes(at::Device device);

}  // namespace demiurgic
