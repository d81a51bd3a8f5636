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

}  // namespace

void sample(Context& context, const SampleArgs& args) {
    const int64_t num_rows = args.logits.size(0), vocab = args.logits.size(1);
    const int64_t own = context.entries->sample_scratch(vocab), bytes = own * at::get_num_threads();
    if (!context.scratch.defined() || context.scratch.size(0) < bytes) {
        context.scratch = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
    }
    char* scratch = static_cast<char*>(context.scratch.data_ptr());
    const float* logits = args.logits.const_data_ptr<float>();
    for_rows(num_rows, vocab, [&](int64_t row, int thread) {
        args.samples[row] = context.entries->sample(logits + row * args.logits.stride(0), vocab, args.rows[row],
                                                    args.want_logprobs, scratch + thread * own);
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
