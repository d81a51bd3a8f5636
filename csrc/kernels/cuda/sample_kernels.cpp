#include "kernels/cuda/sample_kernels.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
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

// Pieces of a block of memory, one after the other.
class Pieces {
public:
    // The place of `bytes` bytes, aligned to 8.
    size_t add(size_t bytes) {
        const size_t place = bytes_;
        bytes_ += (bytes + 7) / 8 * 8;
        return place;
    }
    at::Tensor memory(const at::TensorOptions& where) const {
        return at::empty({static_cast<int64_t>(bytes_)}, where.dtype(at::kByte));
    }

private:
    size_t bytes_ = 0;
};

// A report on the device: where it lies, and where what it writes goes.
struct PlacedReport {
    const Report* of;  // the caller's
    size_t place, ids, logprobs, entropy;
};

// The rows of a launch on the device: what it reads goes there, and what it writes comes back, in one copy each.
class Launch {
public:
    Launch(const std::vector<SampleRow>& rows, at::Device device) : rows_(rows) {
        input_places_.add(rows.size() * sizeof(SampleRow));
        output_places_.add(rows.size() * sizeof(Chosen));
        for (const SampleRow& row : rows) {
            edits_.push_back(input_places_.add(static_cast<size_t>(row.num_edits) * sizeof(TokenEdit)));
            for (const Report* report : {row.raw, row.processed}) place(report);
        }
        input_ = input_places_.memory(device);
        output_ = output_places_.memory(device);
        write_input();
    }

    const SampleRow* rows() const { return static_cast<const SampleRow*>(input_.const_data_ptr()); }
    Chosen* chosen() const { return static_cast<Chosen*>(output_.data_ptr()); }

    // Waits for the launch; fills the reports of rows that have a token.
    std::vector<Chosen> read() const {
        const at::Tensor output = output_.to(at::kCPU);
        const char* from = static_cast<const char*>(output.const_data_ptr());
        std::vector<Chosen> chosen(rows_.size());
        std::memcpy(chosen.data(), from, rows_.size() * sizeof(Chosen));
        for (size_t i = 0; i < reports_.size(); ++i) {
            if (reports_[i].of && chosen[i / 2].token >= 0) fill(reports_[i], from);
        }
        return chosen;
    }

private:
    void place(const Report* report) {
        PlacedReport placed = {report, 0, 0, 0, 0};
        if (report) {
            const size_t num_top = static_cast<size_t>(report->num_top);
            placed.place = input_places_.add(sizeof(Report));
            placed.ids = output_places_.add(num_top * sizeof(int64_t));
            placed.logprobs = output_places_.add(num_top * sizeof(float));
            placed.entropy = output_places_.add(sizeof(float));
        }
        reports_.push_back(placed);
    }

    void write_input() {
        // Pinned, so that the copy is in order with the stream and nobody waits for it.
        const at::Tensor staged = input_places_.memory(at::TensorOptions().pinned_memory(true));
        char* to = static_cast<char*>(staged.data_ptr());
        const char* there = static_cast<const char*>(input_.const_data_ptr());
        for (size_t i = 0; i < rows_.size(); ++i) {
            SampleRow row = rows_[i];
            if (row.num_edits > 0) {
                std::memcpy(to + edits_[i], row.edits, static_cast<size_t>(row.num_edits) * sizeof(TokenEdit));
            }
            row.edits = reinterpret_cast<const TokenEdit*>(there + edits_[i]);
            row.raw = write_report(reports_[2 * i], to, there);
            row.processed = write_report(reports_[2 * i + 1], to, there);
            std::memcpy(to + i * sizeof(SampleRow), &row, sizeof(SampleRow));
        }
        input_.copy_(staged, /*non_blocking=*/true);
    }

    const Report* write_report(const PlacedReport& placed, char* to, const char* there) const {
        if (!placed.of) return nullptr;
        char* output = static_cast<char*>(output_.data_ptr());
        const Report report = {placed.of->num_top, reinterpret_cast<int64_t*>(output + placed.ids),
                               reinterpret_cast<float*>(output + placed.logprobs),
                               placed.of->entropy ? reinterpret_cast<float*>(output + placed.entropy) : nullptr};
        std::memcpy(to + placed.place, &report, sizeof(Report));
        return reinterpret_cast<const Report*>(there + placed.place);
    }

    static void fill(const PlacedReport& placed, const char* from) {
        const size_t num_top = static_cast<size_t>(placed.of->num_top);
        if (num_top > 0) {
            std::memcpy(placed.of->ids, from + placed.ids, num_top * sizeof(int64_t));
            std::memcpy(placed.of->logprobs, from + placed.logprobs, num_top * sizeof(float));
        }
        if (placed.of->entropy) std::memcpy(placed.of->entropy, from + placed.entropy, sizeof(float));
    }

    const std::vector<SampleRow>& rows_;
    Pieces input_places_, output_places_;
    std::vector<size_t> edits_;          // of each row
    std::vector<PlacedReport> reports_;  // two of each row: of the logits, of what is left
    at::Tensor input_, output_;
};

bool fits(const Report* report) { return !report || report->num_top <= kMostReported; }

}  // namespace

void sample(Context& context, const SampleArgs& args) {
    const auto& [logits, rows, want_logprobs, samples] = args;
    const bool reports_fit =
        std::all_of(rows.begin(), rows.end(), [](const SampleRow& r) { return fits(r.raw) && fits(r.processed); });
    if (!is_plain(logits) || !reports_fit) {
        reference_kernels().sample(context, args);
        return;
    }
    const c10::cuda::CUDAGuard guard(context.device);
    const int64_t num_rows = logits.size(0), vocab = logits.size(1), shared_bytes = shared_bytes_of(logits.device());
    const Launch launch(rows, logits.device());
    const at::Tensor scratch = at::empty({sampler_scratch(num_rows, vocab, shared_bytes)}, logits.options());
    C10_CUDA_CHECK(launch_sample(logits.const_data_ptr<float>(), logits.stride(0), num_rows, vocab, launch.rows(),
                                 want_logprobs, launch.chosen(), {shared_bytes, scratch.data_ptr<float>()},
                                 c10::cuda::getCurrentCUDAStream(logits.device().index())));
    const std::vector<Chosen> chosen = launch.read();
    for (size_t i = 0; i < rows.size(); ++i) {
        samples[i] = {chosen[i].token, chosen[i].logprob, chosen[i].processed_logprob, rows[i].raw, rows[i].processed};
    }
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
