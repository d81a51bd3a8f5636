#include "kernels/cpu/sample.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "kernels/cpu/float_mode.h"
#include "kernels/cpu/isa.h"

namespace demiurgic::cpu {

namespace {

// Fewer logits than this are not worth waking a thread.
constexpr int64_t kGrain = int64_t{1} << 14;

// f(row, number of the thread) for each row, over the threads. Which thread takes a row changes no bit of it.
template <class F>
void for_rows(int64_t num_rows, int64_t vocab, F f) {
    const int64_t rows_together = std::max<int64_t>(1, kGrain / vocab);
    at::parallel_for(0, num_rows, rows_together, [&](int64_t begin, int64_t end) {
        const DefaultFloatMode float_mode;
        for (int64_t row = begin; row < end; ++row) f(row, at::get_thread_num());
    });
}

RowEdits edits_of(const LogitEdits& edits, int64_t row, int64_t vocab) {
    if (!edits.index.defined()) return {};
    const int64_t* begin = edits.index.const_data_ptr<int64_t>();
    const int64_t* end = begin + edits.index.size(0);
    const int64_t* first =
        std::lower_bound(begin, end, row, [=](int64_t index, int64_t r) { return index / vocab < r; });
    const int64_t* last =
        std::upper_bound(first, end, row, [=](int64_t r, int64_t index) { return r < index / vocab; });
    const int64_t skipped = first - begin;
    return {last - first,
            row * vocab,
            first,
            edits.bias.const_data_ptr<float>() + skipped,
            edits.repetition.const_data_ptr<float>() + skipped,
            edits.frequency.const_data_ptr<float>() + skipped,
            edits.presence.const_data_ptr<float>() + skipped,
            edits.banned.const_data_ptr<bool>() + skipped};
}

SampleRow row_of(const SampleArgs& args, int64_t row) {
    const int64_t vocab = args.logits.size(1);
    const int64_t* random = args.random.const_data_ptr<int64_t>() + 2 * row;
    return {args.logits.const_data_ptr<float>() + row * args.logits.stride(0),
            vocab,
            edits_of(args.edits, row, vocab),
            args.greedy.const_data_ptr<bool>()[row],
            args.typical.const_data_ptr<bool>()[row],
            args.want_logprobs,
            args.temperature.const_data_ptr<float>()[row],
            args.min_p.const_data_ptr<float>()[row],
            args.top_k.const_data_ptr<int64_t>()[row],
            args.nucleus.const_data_ptr<int64_t>()[row],
            static_cast<uint64_t>(random[0]) << 32 | static_cast<uint64_t>(random[1])};
}

}  // namespace

void sample(Context& context, const SampleArgs& args) {
    const int64_t num_rows = args.logits.size(0), vocab = args.logits.size(1);
    const int64_t own = context.entries->sample_scratch(vocab), bytes = own * at::get_num_threads();
    if (!context.scratch.defined() || context.scratch.size(0) < bytes) {
        context.scratch = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
    }
    char* scratch = static_cast<char*>(context.scratch.data_ptr());
    int64_t* token = args.token.data_ptr<int64_t>();
    float* logprob = args.logprob.data_ptr<float>();
    float* processed_logprob = args.processed_logprob.data_ptr<float>();
    for_rows(num_rows, vocab, [&](int64_t row, int thread) {
        const SampledToken sampled = context.entries->sample(row_of(args, row), scratch + thread * own);
        token[row] = sampled.token;
        logprob[row] = sampled.logprob;
        processed_logprob[row] = sampled.processed_logprob;
    });
}

void log_probability(Context& context, const LogProbabilityArgs& args) {
    const int64_t vocab = args.logits.size(1);
    const float* logits = args.logits.const_data_ptr<float>();
    const int64_t* token = args.token.const_data_ptr<int64_t>();
    float* logprob = args.logprob.data_ptr<float>();
    for_rows(args.logits.size(0), vocab, [&](int64_t row, int) {
        logprob[row] = context.entries->log_probability(logits + row * args.logits.stride(0), vocab, token[row]);
    });
}

}  // namespace demiurgic::cpu
