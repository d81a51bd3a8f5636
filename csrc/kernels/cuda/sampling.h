#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/step_state.h"
#include "kernels/types.h"

// The sampler on the device: token and log-probabilities are, bit for bit, those of the CPU's. Rows of logits are float32,
// `stride` elements apart. R: rows, V: vocabulary. Each launcher returns what the launch reported, and allocates and waits
// for nothing.
namespace demiurgic::cuda {

struct Chosen {
    int64_t token;  // or a code of types.h
    float logprob;  // nan where it is not wanted or there is no token
    float processed_logprob;
};

// Where a block keeps the row that it works on: in shared memory where the device allows a block enough of it, else in
// `scratch`.
struct SamplerMemory {
    int64_t shared_bytes;  // that a block may ask for on this device
    float* scratch;        // [R, V]; may be null where sampler_scratch says 0
};

// Most tokens that a report can list.
constexpr int kMostReported = 2048;

// Floats that `scratch` must hold.
int64_t sampler_scratch(int64_t num_rows, int64_t vocab, int64_t shared_bytes);

// A token of each row, by options and edits that the host has planned.
cudaError_t launch_sample(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab,
                          const SampleRow* rows,  // [R], with edits and reports on the device
                          bool want_logprobs,
                          Chosen* chosen,  // [R]
                          SamplerMemory memory, cudaStream_t stream);

// The end of a captured step: a token of each row that is not at rest, by the row's state, and the input of the next step.
cudaError_t launch_sample_step(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab,
                               const StepState& state, SamplerMemory memory,
                               bool overlaps_previous,  // programmatic dependent launch; not before sm_90
                               cudaStream_t stream);

// Makes StepSampling::counts of a context.
cudaError_t launch_count_context(const int64_t* tokens, int64_t num_tokens,
                                 int64_t first_counted,  // those before are in the context, but not counted
                                 uint32_t* counts,       // [V]
                                 int64_t vocab, cudaStream_t stream);

// The log-softmax of each row at one token, by the sampler's arithmetic; nan where a logit is NaN or +inf, or all are -inf.
cudaError_t launch_log_probability(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab,
                                   const int64_t* token,  // [R]
                                   float* logprob,        // [R]
                                   cudaStream_t stream);

}  // namespace demiurgic::cuda
