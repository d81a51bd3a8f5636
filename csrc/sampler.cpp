#include "sampler.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/arithmetic.h"
#include "philox.h"

namespace demiurgic {

namespace {

template <class T>
at::Tensor on_device(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
    at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(dtype));
    std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
    return tensor.to(device);
}

// The edits of all sequences, one after the other.
LogitEdits collect_edits(const std::vector<Sequence*>& sequences, int64_t vocab, at::Device device) {
    size_t most = 0;
    for (const Sequence* sequence : sequences) most += sequence->edits.all().size();
    if (most == 0) return {};
    std::vector<int64_t> index;
    std::vector<float> bias, repetition, frequency, presence;
    std::vector<uint8_t> banned;
    index.reserve(most);
    banned.reserve(most);
    for (std::vector<float>* values : {&bias, &repetition, &frequency, &presence}) values->reserve(most);
    for (size_t row = 0; row < sequences.size(); ++row) {
        for (const TokenEdit& edit : sequences[row]->edits.all()) {
            if (edit.token >= vocab) continue;  // an EOS id of the config may lie outside
            index.push_back(static_cast<int64_t>(row) * vocab + edit.token);
            bias.push_back(edit.bias);
            repetition.push_back(edit.repetition);
            frequency.push_back(edit.frequency);
            presence.push_back(edit.presence);
            banned.push_back(edit.bans != 0);
        }
    }
    if (index.empty()) return {};
    return {on_device(index, at::kLong, device),       on_device(bias, at::kFloat, device),
            on_device(repetition, at::kFloat, device), on_device(frequency, at::kFloat, device),
            on_device(presence, at::kFloat, device),   on_device(banned, at::kBool, device)};
}

// The options of each row in the form of SampleArgs.
struct RowOptions {
    RowOptions(const std::vector<Sequence*>& sequences, int64_t vocab) {
        for (const Sequence* sequence : sequences) add(*sequence, vocab);
    }

    void add(const Sequence& sequence, int64_t vocab) {
        constexpr int64_t nucleus_off = int64_t{1} << arithmetic::kNucleusBits;
        const GenerationConfig& config = *sequence.config;
        const bool is_greedy = config.greedy(), is_typical = !is_greedy && config.typical_p < 1.0;
        const double p = is_greedy ? 1.0 : is_typical ? config.typical_p : config.top_p;
        const bool has_top_k = !is_greedy && config.top_k > 0 && config.top_k < vocab;
        const bool has_min_p = !is_greedy && config.min_p > 0;
        const uint64_t bits = token_bits(sequence.seed, static_cast<uint64_t>(sequence.size()));
        greedy.push_back(is_greedy);
        temperature.push_back(is_greedy ? 1.0f : static_cast<float>(config.temperature));
        top_k.push_back(has_top_k ? config.top_k : vocab);
        nucleus.push_back(std::llround(p * static_cast<double>(nucleus_off)));
        typical.push_back(is_typical);
        min_p.push_back(has_min_p ? static_cast<float>(config.min_p) : 0.0f);
        random.push_back(static_cast<int64_t>(bits >> 32));
        random.push_back(static_cast<int64_t>(bits & 0xffffffff));
        if (has_top_k) most_top_k = std::max(most_top_k, config.top_k);
        any_nucleus |= nucleus.back() < nucleus_off;
        any_typical |= is_typical;
        any_min_p |= has_min_p;
        any_sampled |= !is_greedy;
        want_logprobs |= sequence.call->want_logprobs;
    }

    std::vector<uint8_t> greedy, typical;
    std::vector<float> temperature, min_p;
    std::vector<int64_t> top_k, nucleus, random;
    int64_t most_top_k = 0;
    bool any_nucleus = false, any_typical = false, any_min_p = false, any_sampled = false, want_logprobs = false;
};

}  // namespace

std::vector<Sample> Sampler::sample(const at::Tensor& logits, const std::vector<Sequence*>& sequences) {
    const int64_t num_rows = logits.size(0), vocab = logits.size(1);
    const at::Device device = logits.device();
    const RowOptions rows(sequences, vocab);
    const LogitEdits edits = collect_edits(sequences, vocab, device);
    const at::Tensor greedy = on_device(rows.greedy, at::kBool, device);
    const at::Tensor temperature = on_device(rows.temperature, at::kFloat, device);
    const at::Tensor top_k = on_device(rows.top_k, at::kLong, device);
    const at::Tensor nucleus = on_device(rows.nucleus, at::kLong, device);
    const at::Tensor typical = on_device(rows.typical, at::kBool, device);
    const at::Tensor min_p = on_device(rows.min_p, at::kFloat, device);
    const at::Tensor random = on_device(rows.random, at::kLong, device).view({num_rows, 2});
    at::Tensor token = at::empty({num_rows}, top_k.options());
    at::Tensor logprob = at::empty({num_rows}, temperature.options());
    at::Tensor processed_logprob = at::empty({num_rows}, temperature.options());

    kernels_.sample(context_, {logits, edits, greedy, temperature, top_k, nucleus, typical, min_p, random,
                               rows.most_top_k, rows.any_nucleus, rows.any_typical, rows.any_min_p, rows.any_sampled,
                               rows.want_logprobs, token, logprob, processed_logprob});

    token = token.to(at::kCPU);
    logprob = logprob.to(at::kCPU);
    processed_logprob = processed_logprob.to(at::kCPU);
    std::vector<Sample> samples(num_rows);
    for (int64_t i = 0; i < num_rows; ++i) {
        samples[i] = {token.data_ptr<int64_t>()[i], logprob.data_ptr<float>()[i],
                      processed_logprob.data_ptr<float>()[i]};
    }
    return samples;
}

}  // namespace demiurgic
