#pragma once

#include <cstdint>

// Types of the kernels' interface that need no ATen.
namespace demiurgic {

enum class Activation { silu, gelu, relu };

// The tokens of one sequence in the flat batch.
struct BatchRow {
    int64_t first;           // index of its first token
    int64_t num_tokens;      // of this step
    int64_t context_length;  // positions it attends to, those of this step included

    bool operator==(const BatchRow&) const = default;
};

// Blocks of the cache that follow one another.
struct BlockRun {
    int64_t first;
    int64_t count;
};

// How the keys and values of a layer, [blocks, kv_heads, block_size, d], lie in memory.
enum class CacheLayout {
    by_block,            // as the shape says
    keys_by_coordinate,  // so, but the positions of a block of keys are neighbours
    by_head,             // a head's blocks follow one another: a run of them is a tensor [positions, d]
};

// The largest numbers of one step.
struct StepShape {
    int64_t num_tokens;
    int64_t context_length;
    int64_t widest;  // most columns of a product
    int64_t head_dim;
    int64_t weight_bytes = 0;  // that the step reads; 0: not known
};

// What the options do to the logit of one token before temperature: steps 1 to 5 of the order of sampling, applied in the
// order of the fields.
struct TokenEdit {
    int64_t token;
    float bias = 0;        // added
    float repetition = 1;  // l < 0 ? l * p : l / p
    float frequency = 0;   // subtracted
    float presence = 0;    // subtracted
    uint8_t bans = 0;      // becomes -inf, for reasons that are the sequence's business; 0: does not
};

// What is wanted of a distribution beside the token, and where it goes. Written only where a token is chosen.
struct Report {
    int64_t num_top;  // so many of the most likely tokens, the most likely first, the lowest id on ties
    int64_t* ids;     // [num_top]; -1 where fewer tokens are left, those above -inf
    float* logprobs;  // [num_top]; nan there
    float* entropy;   // in nats; null: not wanted
};

// How to choose a token from one row of logits. V: vocabulary. Off values: temperature 1, top_k V, nucleus 2^30, min_p 0.
struct SampleRow {
    const TokenEdit* edits;  // [num_edits], of distinct tokens; those outside the vocabulary mean nothing
    int64_t num_edits;
    bool greedy;  // the most likely token, lowest id on ties
    float temperature;
    int64_t top_k;    // 1 to V
    int64_t nucleus;  // p of top_p, or of typical_p, in units of 2^-30
    bool typical;     // nucleus is typical_p
    float min_p;
    uint64_t random;
    const Report* raw = nullptr;        // of the model's logits; null: nothing is wanted
    const Report* processed = nullptr;  // of what the options left
};

struct Sample {
    int64_t token;                // one of the codes below where there is none
    float logprob;                // by the model's logits; where it is wanted
    float processed_logprob;      // by what the options left; where it is wanted
    const Report* raw = nullptr;  // those of the SampleRow
    const Report* processed = nullptr;
};

// What stands for a token where none can be chosen.
constexpr int64_t kNotFinite = -1;       // a logit is NaN or +inf
constexpr int64_t kNothingAllowed = -2;  // every token is at -inf
constexpr int64_t kOverflow = -3;        // penalties or temperature made the largest logit infinite
constexpr int64_t kHookNotFinite = -4;   // a logit is NaN or +inf after the user's logits processors
constexpr int64_t kHookFailed = -5;      // a hook of the user's threw; its call ends

}  // namespace demiurgic
