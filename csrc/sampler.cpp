#include "sampler.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "kernels/arithmetic.h"
#include "kernels/reference.h"
#include "philox.h"

namespace demiurgic {

namespace {

SampleRow row_of(const Sequence& sequence, int64_t position, int64_t vocab) {
    constexpr int64_t nucleus_unit = int64_t{1} << arithmetic::kNucleusBits;
    const GenerationConfig& config = *sequence.config;
    const std::vector<TokenEdit>& edits = sequence.edits.all();
    SampleRow row = {edits.data(),
                     static_cast<int64_t>(edits.size()),
                     config.greedy(),
                     1.0f,
                     vocab,
                     nucleus_unit,
                     false,
                     0.0f,
                     token_bits(sequence.seed, static_cast<uint64_t>(position))};
    if (row.greedy) return row;
    row.temperature = static_cast<float>(config.temperature);
    row.typical = config.typical_p < 1.0;
    const double p = row.typical ? config.typical_p : config.top_p;
    row.nucleus = std::llround(p * static_cast<double>(nucleus_unit));
    if (config.top_k > 0) row.top_k = std::min(config.top_k, vocab);
    row.min_p = static_cast<float>(config.min_p);
    return row;
}

}  // namespace

// Fills rows_; true where log-probabilities are wanted.
bool Sampler::read_options(const std::vector<Sequence*>& sequences, int64_t vocab) {
    bool want_logprobs = false;
    rows_.clear();
    for (const Sequence* sequence : sequences) {
        rows_.push_back(row_of(*sequence, sequence->size(), vocab));
        want_logprobs |= sequence->call->want_logprobs;
    }
    return want_logprobs;
}

std::vector<Sample> Sampler::sample(const at::Tensor& logits, const std::vector<Sequence*>& sequences) {
    const bool want_logprobs = read_options(sequences, logits.size(1));
    std::vector<Sample> samples(sequences.size());
    kernels_.sample(context_, {logits, rows_, want_logprobs, samples});
    return samples;
}

std::vector<Sample> Sampler::guess(const at::Tensor& logits, const std::vector<Ahead>& rows) {
    rows_.clear();
    for (const auto& [sequence, position] : rows) rows_.push_back(row_of(*sequence, position, logits.size(1)));
    std::vector<Sample> samples(rows.size());
    kernels_.sample(context_, {logits, rows_, /*want_logprobs=*/false, samples});
    return samples;
}

at::Tensor Sampler::edited(const at::Tensor& logits, const std::vector<Sequence*>& sequences) {
    read_options(sequences, logits.size(1));
    return edited_copy(logits, rows_);
}

std::vector<Sample> Sampler::sample_edited(const at::Tensor& edited, const at::Tensor& logits,
                                           const std::vector<Sequence*>& sequences) {
    const bool want_logprobs = read_options(sequences, logits.size(1));
    for (SampleRow& row : rows_) row.num_edits = 0;
    std::vector<Sample> samples(sequences.size());
    kernels_.sample(context_, {edited, rows_, want_logprobs, samples});
    const auto not_finite = [](const Sample& sample) { return sample.token == kNotFinite; };
    if (!want_logprobs && std::none_of(samples.begin(), samples.end(), not_finite)) return samples;

    // What the kernel took for the model's logits are not: log-probabilities come from `logits`, and so does the blame.
    std::vector<int64_t> tokens;
    for (const Sample& sample : samples) tokens.push_back(std::max<int64_t>(0, sample.token));
    at::Tensor logprob = at::empty({static_cast<int64_t>(tokens.size())}, logits.options());
    kernels_.log_probability(context_, {logits, at::tensor(tokens).to(logits.device()), logprob});
    logprob = logprob.to(at::kCPU);
    for (size_t i = 0; i < samples.size(); ++i) {
        samples[i].logprob = logprob.const_data_ptr<float>()[i];
        if (not_finite(samples[i]) && !std::isnan(samples[i].logprob)) samples[i].token = kHookNotFinite;
    }
    return samples;
}

}  // namespace demiurgic
