#include "kernels/cuda/sample_kernels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <limits>

#include "kernels/cuda/sampling.h"

namespace demiurgic::cuda {

namespace {

// A layout that the kernels take.
bool is_plain(const at::Tensor& logits) {
    return logits.is_cuda() && logits.scalar_type() == at::kFloat && logits.stride(1) == 1 &&
           logits.size(1) <= std::numeric_limits<int32_t>::max();
}

// Rows and their edits in one piece on the device, by one copy.
struct PlannedRows {
    PlannedRows(const std::vector<SampleRow>& rows, at::Device device) {
        const size_t row_bytes = rows.size() * sizeof(SampleRow);
        size_t bytes = row_bytes;
        for (const SampleRow& row : rows) bytes += static_cast<size_t>(row.num_edits) * sizeof(TokenEdit);
        const auto options = at::TensorOptions().dtype(at::kByte);
        memory = at::empty({static_cast<int64_t>(bytes)}, options.device(device));
        // Pinned, so that the copy is in order with the stream and nobody waits for it.
        at::Tensor staged = at::empty({static_cast<int64_t>(bytes)}, options.pinned_memory(true));
        char* to = static_cast<char*>(staged.mutable_data_ptr());
        const char* there = static_cast<const char*>(memory.data_ptr());
        size_t end = row_bytes;
        for (size_t i = 0; i < rows.size(); ++i) {
            SampleRow row = rows[i];
            const size_t edit_bytes = static_cast<size_t>(row.num_edits) * sizeof(TokenEdit);
            if (edit_bytes > 0) std::memcpy(to + end, row.edits, edit_bytes);
            row.edits = reinterpret_cast<const TokenEdit*>(there + end);
            std::memcpy(to + i * sizeof(SampleRow), &row, sizeof(SampleRow));
            end += edit_bytes;
        }
        memory.copy_(staged, /*non_blocking=*/true);
    }

    const SampleRow* rows() const { return static_cast<const SampleRow*>(memory.const_data_ptr()); }

    at::Tensor memory;
};

std::vector<Chosen> chosen_of(const at::Tensor& logits, const std::vector<SampleRow>& rows, bool want_logprobs) {
    const at::Device device = logits.device();
    const int64_t num_rows = logits.size(0), vocab = logits.size(1), shared_bytes = shared_bytes_of(device);
    const PlannedRows planned(rows, device);
    const at::Tensor scratch = at::empty({sampler_scratch(num_rows, vocab, shared_bytes)}, logits.options());
    const at::Tensor chosen =
        at::empty({num_rows * static_cast<int64_t>(sizeof(Chosen))}, logits.options().dtype(at::kByte));
    C10_CUDA_CHECK(launch_sample(logits.const_data_ptr<float>(), logits.stride(0), num_rows, vocab, planned.rows(),
                                 want_logprobs, static_cast<Chosen*>(chosen.data_ptr()),
                                 {shared_bytes, scratch.data_ptr<float>()},
                                 c10::cuda::getCurrentCUDAStream(device.index())));
    std::vector<Chosen> result(rows.size());
    const at::Tensor read = chosen.to(at::kCPU);
    std::memcpy(result.data(), read.const_data_ptr(), rows.size() * sizeof(Chosen));
    return result;
}

bool wants_report(const SampleRow& row) { return row.raw || row.processed; }

// args.samples of some rows, which `choose` finds from their logits.
template <class Choose>
void sample_some(const SampleArgs& args, const std::vector<int64_t>& which, Choose choose) {
    if (which.empty()) return;
    std::vector<SampleRow> rows;
    for (const int64_t row : which) rows.push_back(args.rows[row]);
    const bool all = which.size() == args.rows.size();
    const at::Tensor logits =
        all ? args.logits : args.logits.index_select(0, at::tensor(which).to(args.logits.device()));
    const std::vector<Sample> samples = choose(logits, rows);
    for (size_t i = 0; i < which.size(); ++i) args.samples[which[i]] = samples[i];
}

}  // namespace

void sample(Context& context, const SampleArgs& args) {
    if (!is_plain(args.logits)) {
        reference_kernels().sample(context, args);
        return;
    }
    const c10::cuda::CUDAGuard guard(context.device);
    std::vector<int64_t> own, reported;
    for (size_t row = 0; row < args.rows.size(); ++row) {
        (wants_report(args.rows[row]) ? reported : own).push_back(static_cast<int64_t>(row));
    }
    sample_some(args, own, [&](const at::Tensor& logits, const std::vector<SampleRow>& rows) {
        std::vector<Sample> samples;
        for (const auto& [token, logprob, processed_logprob] : chosen_of(logits, rows, args.want_logprobs)) {
            samples.push_back({token, logprob, processed_logprob});
        }
        return samples;
    });
    sample_some(args, reported, [&](const at::Tensor& logits, const std::vector<SampleRow>& rows) {
        std::vector<Sample> samples(rows.size());
        reference_kernels().sample(context, {logits, rows, args.want_logprobs, samples});
        return samples;
    });
}

void log_probability(Context& context, const LogProbabilityArgs& args) {
    const auto& [logits, token, logprob] = args;
    if (!is_plain(logits) || !token.is_contiguous() || !logprob.is_contiguous()) {
        reference_kernels().log_probability(context, args);
        return;
    }
    const c10::cuda::CUDAGuard guard(context.device);
    C10_CUDA_CHECK(launch_log_probability(logits.const_data_ptr<float>(), logits.stride(0), logits.size(0),
                                          logits.size(1), token.const_data_ptr<int64_t>(),
                                          logprob.mutable_data_ptr<float>(),
                                          c10::cuda::getCurrentCUDAStream(context.device.index())));
}

int64_t shared_bytes_of(at::Device device) {
    int bytes = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index()));
    return bytes;
}

}  // namespace demiurgic::cuda
