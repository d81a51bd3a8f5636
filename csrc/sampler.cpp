#include "sampler.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/arithmetic.h"
#include "kernels/reference.h"
#include "philox.h"
#include "step_sampling.h"

namespace demiurgic {

namespace {

SampleRow row_of(const Sequence& sequence, int64_t position, int64_t vocab) {
    SampleRow row = sample_options(*sequence.config, vocab);
    row.edits = sequence.edits.all().data();
    row.num_edits = static_cast<int64_t>(sequence.edits.all().size());
    row.random = token_bits(sequence.seed, static_cast<uint64_t>(position));
    return row;
}

}  // namespace

void Sampler::want_reports(const Sequence& sequence, SampleRow& row) {
    const GenerationConfig& config = *sequence.config;
    if (config.top_logprobs == 0 && !config.entropy) return;
    if (config.reports_raw()) row.raw = reports_.add(config.top_logprobs, config.entropy);
    if (config.reports_processed()) row.processed = reports_.add(config.top_logprobs, config.entropy);
}

// Fills rows_; true where log-probabilities are wanted.
bool Sampler::read_options(const std::vector<Sequence*>& sequences, int64_t vocab) {
    bool want_logprobs = false;
    rows_.clear();
    for (const Sequence* sequence : sequences) {
        rows_.push_back(row_of(*sequence, sequence->size(), vocab));
        want_reports(*sequence, rows_.back());
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
    rows_.clear();
    for (const Sequence* sequence : sequences) rows_.push_back(row_of(*sequence, sequence->size(), logits.size(1)));
    return edited_copy(logits, rows_);
}

std::vector<Sample> Sampler::sample_edited(const at::Tensor& edited, const at::Tensor& logits,
                                           const std::vector<Sequence*>& sequences) {
    const bool want_logprobs = read_options(sequences, logits.size(1));
    std::vector<const Report*> raw;
    for (SampleRow& row : rows_) {
        row.num_edits = 0;
        raw.push_back(std::exchange(row.raw, nullptr));
    }
    std::vector<Sample> samples(sequences.size());
    kernels_.sample(context_, {edited, rows_, want_logprobs, samples});
    // What the kernel took for the model's logits are not: log-probabilities come from `logits`, and so does the blame.
    name_raw(logits, want_logprobs, samples);
    for (size_t i = 0; i < samples.size(); ++i) samples[i].raw = raw[i];
    if (std::any_of(raw.begin(), raw.end(), [](const Report* report) { return report != nullptr; })) {
        report_raw(logits, raw);
    }
    return samples;
}

// The log-probabilities of the tokens by the model's logits [R, V], and whether NaN and infinities are theirs.
void Sampler::name_raw(const at::Tensor& logits, bool want_logprobs, std::vector<Sample>& samples) {
    const auto not_finite = [](const Sample& sample) { return sample.token == kNotFinite; };
    if (!want_logprobs && std::none_of(samples.begin(), samples.end(), not_finite)) return;
    std::vector<int64_t> tokens;
    for (const Sample& sample : samples) tokens.push_back(std::max<int64_t>(0, sample.token));
    at::Tensor logprob = at::empty({static_cast<int64_t>(tokens.size())}, logits.options());
    kernels_.log_probability(context_, {logits, at::tensor(tokens).to(logits.device()), logprob});
    logprob = logprob.to(at::kCPU);
    for (size_t i = 0; i < samples.size(); ++i) {
        samples[i].logprob = logprob.const_data_ptr<float>()[i];
        if (not_finite(samples[i]) && !std::isnan(samples[i].logprob)) samples[i].token = kHookNotFinite;
    }
}

// Fills reports of the distributions that `logits` [R, V] are, by drawing tokens that nobody wants.
void Sampler::report_raw(const at::Tensor& logits, const std::vector<const Report*>& reports) {
    std::vector<SampleRow> rows;
    for (const Report* report : reports) {
        SampleRow row = {nullptr, 0,    true, 1.0f, logits.size(1), int64_t{1} << arithmetic::kNucleusBits,
                         false,   0.0f, 0};
        row.raw = report;
        rows.push_back(row);
    }
    std::vector<Sample> samples(rows.size());
    kernels_.sample(context_, {logits, rows, false, samples});
    for (size_t i = 0; i < rows.size(); ++i) {
        const Report* report = reports[i];
        if (samples[i].token >= 0 || !report) continue;
        // The hooks mended what the model gave.
        std::fill_n(report->ids, report->num_top, -1);
        std::fill_n(report->logprobs, report->num_top, std::numeric_limits<float>::quiet_NaN());
        if (report->entropy) *report->entropy = std::numeric_limits<float>::quiet_NaN();
    }
}

}  // namespace demiurgic
