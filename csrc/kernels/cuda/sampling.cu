#include "kernels/cuda/sampling.h"

#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sampling.cuh"
#include "philox.h"

namespace demiurgic::cuda {

namespace {

constexpr int kMostThreads = 1024;

// Of a block, which works on one row. No bit depends on it.
unsigned threads_for(int64_t vocab) {
    return static_cast<unsigned>(std::clamp<int64_t>((vocab / 16 + 31) / 32 * 32, 64, kMostThreads));
}

bool fits_shared(int64_t vocab, int64_t shared_bytes) {
    return vocab * int64_t{sizeof(float)} + int64_t{sizeof(RowSampler::Memory)} <= shared_bytes;
}

// Edits in a list that the host has made.
struct PlannedEdits {
    const TokenEdit* edits;
    int64_t num;

    __device__ float of_any(int, float logit) const { return logit; }
    __device__ int num_listed() const { return static_cast<int>(num); }
    __device__ int64_t token(int j) const { return edits[j].token; }
    __device__ float of_listed(int j, float logit) const {
        const TokenEdit& e = edits[j];
        return Edit{e.bias, e.repetition, e.frequency, e.presence, e.bans != 0}.of(logit);
    }
};

// Edits that follow from a row's counts, and the few tokens of which the options say something.
struct CountedEdits {
    const StepSampling& a;
    int64_t position;  // of the token that is drawn

    __device__ Edit edit_of(int64_t token) const {
        const uint32_t count = a.counts ? a.counts[token] : 0, counted = count & ~kInContext;
        return {0.0f, count & kInContext ? a.repetition : 1.0f,
                rounded_product(a.frequency, static_cast<float>(counted)), counted > 0 ? a.presence : 0.0f, false};
    }
    __device__ float of_any(int i, float logit) const { return a.counts && a.counts[i] ? edit_of(i).of(logit) : logit; }
    __device__ int num_listed() const { return a.num_edits; }
    __device__ int64_t token(int j) const { return a.edits[j].token; }
    __device__ float of_listed(int j, float logit) const {
        Edit edit = edit_of(a.edits[j].token);
        edit.bias = a.edits[j].bias;
        edit.bans = position < a.edits[j].banned_before;
        return edit.of(logit);
    }
};

__device__ float* row_memory(float* scratch, int vocab) {
    return scratch ? scratch + static_cast<int64_t>(blockIdx.x) * vocab : dynamic_shared<float>();
}

__global__ void __launch_bounds__(kMostThreads)
    sample_rows(const float* logits, int64_t stride, int vocab, const SampleRow* rows, bool want_logprobs,
                Chosen* chosen, float* scratch) {
    __shared__ RowSampler::Memory memory;
    const SampleRow& row = rows[blockIdx.x];
    const Choosing choosing = {row.greedy, row.typical, want_logprobs, row.temperature, row.min_p,
                               row.top_k,  row.nucleus, row.random,    row.raw,         row.processed};
    RowSampler sampler(memory, logits + blockIdx.x * stride, row_memory(scratch, vocab), vocab, choosing);
    const Chosen result = sampler.run(PlannedEdits{row.edits, row.num_edits});
    if (threadIdx.x == 0) chosen[blockIdx.x] = result;
}

// By one thread: counts the row's token, makes it the input of the next step, and tells the host.
__device__ void finish_step(const StepState& state, const Chosen& chosen, int64_t position) {
    const unsigned r = blockIdx.x;
    const StepSampling& a = state.sampling[r];
    const int64_t token = chosen.token, size = position + 1;
    bool rests = token < 0 || size >= state.limits[r];
    for (int j = 0; j < a.num_edits; ++j) rests |= a.edits[j].token == token && a.edits[j].ends;
    if (token >= 0) {
        if (a.counts) a.counts[token] = (a.counts[token] + 1) | kInContext;
        state.tokens[r] = token;
        state.positions[r] = position;
    }
    state.rows[r] = {r, rests ? 0 : 1, rests ? 0 : size};
    if (rests) {
        state.slots[r] = -1;
    } else {
        const int64_t block = state.block_table[r * state.most_blocks + position / state.block_size];
        state.slots[r] = block * state.block_size + position % state.block_size;
    }
    StepResult& result = state.results[position % state.num_results * gridDim.x + r];
    result.token = token;
    result.logprob = chosen.logprob;
    result.processed_logprob = chosen.processed_logprob;
    result.rests = rests;
    __threadfence_system();
    *const_cast<volatile int64_t*>(&result.position) = position;
}

__global__ void __launch_bounds__(kMostThreads)
    sample_step(const float* logits, int64_t stride, int vocab, StepState state, float* scratch) {
    __shared__ RowSampler::Memory memory;
    wait_for_previous();
    const int64_t position = state.rows[blockIdx.x].context_length;
    if (position == 0) return;  // at rest
    const StepSampling& a = state.sampling[blockIdx.x];
    const Choosing choosing = {
        a.greedy, a.typical, a.want_logprobs, a.temperature,
        a.min_p,  a.top_k,   a.nucleus,       token_bits(a.seed, static_cast<uint64_t>(position))};
    RowSampler sampler(memory, logits + blockIdx.x * stride, row_memory(scratch, vocab), vocab, choosing);
    const Chosen chosen = sampler.run(CountedEdits{a, position});
    __syncthreads();  // all have read the state
    if (threadIdx.x == 0) finish_step(state, chosen, position);
}

__global__ void count_context(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= num_tokens) return;
    if (i >= first_counted) atomicAdd(&counts[tokens[i]], 1u);
    atomicOr(&counts[tokens[i]], kInContext);
}

__global__ void __launch_bounds__(kMostThreads)
    log_probability_rows(const float* logits, int64_t stride, int vocab, const int64_t* token, float* logprob) {
    __shared__ Block::Memory memory;
    Block block(memory);
    const float* row = logits + blockIdx.x * stride;
    const float largest = RowSampler::find_largest(block, row, vocab, [](int, float) {});
    const bool is_finite = fabsf(largest) < INFINITY;
    const int64_t total = is_finite ? block.sum(RowSampler::mass_of_row(block, row, vocab, largest)) : 0;
    if (threadIdx.x > 0) return;
    logprob[blockIdx.x] = is_finite ? log_probability_of(row[token[blockIdx.x]] - largest, total) : NAN;
}

LaunchShape shape_of(int64_t num_rows, int64_t vocab, const SamplerMemory& memory, cudaStream_t stream) {
    const bool fits = fits_shared(vocab, memory.shared_bytes);
    return {static_cast<unsigned>(num_rows), threads_for(vocab), fits ? vocab * sizeof(float) : 0, stream};
}

}  // namespace

int64_t sampler_scratch(int64_t num_rows, int64_t vocab, int64_t shared_bytes) {
    return fits_shared(vocab, shared_bytes) ? 0 : num_rows * vocab;
}

cudaError_t launch_sample(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab, const SampleRow* rows,
                          bool want_logprobs, Chosen* chosen, SamplerMemory memory, cudaStream_t stream) {
    if (num_rows == 0) return cudaSuccess;
    float* scratch = fits_shared(vocab, memory.shared_bytes) ? nullptr : memory.scratch;
    return launch(shape_of(num_rows, vocab, memory, stream), sample_rows, logits, stride, static_cast<int>(vocab), rows,
                  want_logprobs, chosen, scratch);
}

cudaError_t launch_sample_step(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab,
                               const StepState& state, SamplerMemory memory, bool overlaps_previous,
                               cudaStream_t stream) {
    if (num_rows == 0) return cudaSuccess;
    float* scratch = fits_shared(vocab, memory.shared_bytes) ? nullptr : memory.scratch;
    LaunchShape shape = shape_of(num_rows, vocab, memory, stream);
    shape.overlaps_previous = overlaps_previous;
    return launch(shape, sample_step, logits, stride, static_cast<int>(vocab), state, scratch);
}

cudaError_t launch_count_context(const int64_t* tokens, int64_t num_tokens, int64_t first_counted, uint32_t* counts,
                                 int64_t vocab, cudaStream_t stream) {
    const cudaError_t error = cudaMemsetAsync(counts, 0, static_cast<size_t>(vocab) * sizeof(uint32_t), stream);
    if (error != cudaSuccess || num_tokens == 0) return error;
    constexpr unsigned threads = 256;
    const auto blocks = static_cast<unsigned>((num_tokens + threads - 1) / threads);
    return launch({blocks, threads, 0, stream}, count_context, tokens, num_tokens, first_counted, counts);
}

cudaError_t launch_log_probability(const float* logits, int64_t stride, int64_t num_rows, int64_t vocab,
                                   const int64_t* token, float* logprob, cudaStream_t stream) {
    if (num_rows == 0) return cudaSuccess;
    const LaunchShape shape = {static_cast<unsigned>(num_rows), threads_for(vocab), 0, stream};
    return launch(shape, log_probability_rows, logits, stride, static_cast<int>(vocab), token, logprob);
}

}  // namespace demiurgic::cuda
