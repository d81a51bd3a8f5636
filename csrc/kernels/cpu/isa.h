#pragma once

#include <cstdint>
#include <vector>

#include "kernels/arithmetic.h"
#include "kernels/cpu/team.h"
#include "kernels/types.h"

// What one instruction set offers: the decoder's entries over plain pointers. Each set has a translation unit of its own
// (isa_*.cpp) that is compiled for it and includes nothing of ATen, so that no inline function of a shared header is
// compiled with instructions that another machine lacks. Activations are float32; T is the type of weights and cache.
// N: tokens, H: hidden size, d: head dimension, I: intermediate size, V: vocabulary.
namespace demiurgic::cpu {

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// One thread of the step.
struct Member {
    Team* team;
    int index;                      // in the team
    char* shared;                   // scratch of the whole team, `Scratch::shared` bytes
    char* own;                      // scratch of this member, `Scratch::own` bytes
    bool weights_in_cache = false;  // the last-level cache can hold all weights of a step: says how to fetch them
};

// A product's weights, row-major [rows, columns] of T.
struct Matrix {
    const void* weight;  // null: no such product
    int64_t stride;      // elements from row to row
    const void* bias;    // [rows] of T; null: none
    int64_t rows, columns;
};

struct Norm {
    const void* weight;  // [H]
    bool is_float;       // float32, else T
    float eps;
};

struct Embed {
    const int64_t* tokens;  // [N]
    int64_t num_tokens;
    Matrix table;  // [V, H]
    float* out;    // [N, H]
};

struct AttentionIn {
    const float* x;  // [N, H]
    int64_t num_tokens;
    Norm norm;
    Matrix q, k, v;
    const float* cos;  // [N, d / 2]
    const float* sin;  // [N, d / 2]
    const int64_t* slots;
    int64_t heads, kv_heads, d;
    void* keys;    // [blocks, kv_heads, d, 16]
    void* values;  // [blocks, kv_heads, 16, d]
    float* q_out;  // [N, heads, d]
};

struct Attend {
    const float* q;  // [N, heads, d]
    const void* keys;
    const void* values;
    const BatchRow* rows;
    int64_t num_rows;
    const int64_t* block_table;  // [num_rows, most_blocks]
    int64_t most_blocks;
    int64_t heads, kv_heads, d;
    float scale;
    float* out;  // [N, heads, d]
};

struct AttentionOut {
    const float* attended;  // [N, heads * d]
    int64_t num_tokens;
    Matrix out;
    float* x;  // [N, H]
};

struct Mlp {
    int64_t num_tokens;
    Norm norm;
    Matrix gate, up, down;
    Activation activation;
    float* x;  // [N, H]
};

struct Head {
    const float* x;  // [R, H]
    int64_t num_rows;
    Norm norm;
    Matrix head;
    float* logits;  // [R, V]
};

struct Scratch {
    int64_t shared, own;  // bytes
};

// The entries for one type of weights.
struct Entries {
    Scratch (*scratch)(const StepShape&, int num_threads);
    void (*embed)(const Member&, const Embed&);
    void (*attention_in)(const Member&, const AttentionIn&);
    void (*attend)(const Member&, const Attend&);
    void (*attention_out)(const Member&, const AttentionOut&);
    void (*mlp)(const Member&, const Mlp&);
    void (*head)(const Member&, const Head&);

    // Of single rows of float32 logits, by any thread; the same for every type of weights.
    int64_t (*sample_scratch)(int64_t vocab);  // bytes
    Sample (*sample)(const float* logits, int64_t vocab, const SampleRow&, bool want_logprobs, char* scratch);
    float (*log_probability)(const float* logits, int64_t vocab, int64_t token);
};

struct Isa {
    const char* name;
    bool (*runs_here)();  // whether this CPU, and the system on it, has the instructions
    Entries float32, bfloat16, float16;
};

// Fastest first; the last runs everywhere. What this build has, whether or not this machine can run it.
const std::vector<const Isa*>& built_isas();

}  // namespace demiurgic::cpu
