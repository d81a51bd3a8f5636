#pragma once

#include <cstdint>

#include "kernels/types.h"

// What a captured decode step reads and writes on the device: everything that varies from step to step. Plain structs over
// raw pointers, without ATen and CUDA. A step is one token a row; the sampler ends it by writing the input of the next one,
// so steps follow each other without the host. B: rows of the captured bucket, V: vocabulary.
namespace demiurgic {

// What the options say of one token, whatever the context: a bias, a ban, an end. One entry a token.
struct StepEdit {
    int64_t banned_before;  // no token at an earlier position may be this one: 0: allowed, INT64_MAX: banned for good
    int32_t token;          // in the vocabulary
    float bias;             // added
    bool ends;              // the row rests once it has drawn it
};

// Counts of one token in a row's context: its occurrences for frequency_penalty and presence_penalty in the low bits, and
// whether it stands anywhere, which is what repetition_penalty asks.
constexpr uint32_t kInContext = uint32_t{1} << 31;

// The options of one row: a SampleRow whose edits and random bits the device finds itself.
struct StepSampling {
    uint64_t seed;          // the random bits of a token are token_bits(seed, its position)
    int64_t top_k;          // these as in SampleRow
    int64_t nucleus;        //
    float temperature;      //
    float min_p;            //
    float repetition;       // 1, 0, 0: off
    float frequency;        //
    float presence;         //
    bool greedy;            //
    bool typical;           //
    bool want_logprobs;     //
    int32_t num_edits;      //
    const StepEdit* edits;  // [num_edits]
    uint32_t* counts;       // [V] of this row's sequence, the drawn token added by the sampler; null: no penalties
};

// A row's token as the host reads it, one or more steps late.
struct StepResult {
    int64_t token;  // or a code of types.h
    float logprob;  // nan where not wanted
    float processed_logprob;
    int32_t rests;     // the row takes no part in the next step
    int32_t reserved;  // makes the struct the same for every compiler
    int64_t position;  // of the token in its sequence; written last, behind a fence: the rest is then there
};

// All pointers but `results` are to device memory. The host writes what they point to where a row comes, goes or gets a cache
// block, in the stream of the steps. A row at rest has context_length and num_tokens 0 and slot -1: kernels write nothing
// of it.
struct StepState {
    // What the decoder reads.
    int64_t* tokens;             // [B] the input token, always in the vocabulary
    int64_t* positions;          // [B] its index in the sequence
    BatchRow* rows;              // [B] {first: the row's own index, num_tokens: 1, context_length: position + 1}
    int64_t* slots;              // [B] block * block_size + offset, where its key and value go
    const int64_t* block_table;  // [B, most_blocks]
    int64_t most_blocks;
    int64_t block_size;

    // What the sampler reads and writes beside.
    const StepSampling* sampling;  // [B]
    const int64_t* limits;         // [B] tokens at which a row rests: not more than its blocks have slots, and 1
    StepResult* results;           // [num_results, B] pinned host memory; a token's place is its position % num_results
    int64_t num_results;           // more than the steps that the host may be late
};

}  // namespace demiurgic
