#include "sampler.h"

#include <algorithm>
#include <cmath>

#include "kernels/arithmetic.h"
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

std::vector<Sample> Sampler::sample(const at::Tensor& logits, const std::vector<Sequence*>& sequences) {
    bool want_logprobs = false;
    rows_.clear();
    for (const Sequence* sequence : sequences) {
        rows_.push_back(row_of(*sequence, sequence->size(), logits.size(1)));
        want_logprobs |= sequence->call->want_logprobs;
    }
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

}  // namespace demiurgic
