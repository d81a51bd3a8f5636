#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>
#include <limits>

#include "kernels/arithmetic.h"
#include "kernels/reference.h"
#include "kernels/reference_search.h"
#include "kernels/transfer.h"

// The sampler in plain ATen: the order of sampling (docs/architecture.md) step by step, in the arithmetic that makes every
// device draw the same token from the same logits. What the host says goes to the device in one copy, and what it wants to
// know comes back in one. R rows, V tokens.
namespace demiurgic {

namespace {

using namespace arithmetic;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// e^x for x <= 0 (or NaN)
at::Tensor exp_not_positive(const at::Tensor& x) {
    const at::Tensor clamped = x.clamp_min(-80.0f);  // far below what a mass can hold, and no subnormal on the way
    const at::Tensor k = at::floor(clamped * kLog2E + 0.5f);
    const at::Tensor r = (clamped - k * kLn2High) - k * kLn2Low;
    const at::Tensor power = (k.to(at::kInt) + 127).mul(1 << 23).view(at::kFloat);  // 2^k by its bits
    return exp_polynomial(r) * power;
}

// ln(x) for normal x > 0
at::Tensor log_positive(const at::Tensor& x) {
    const at::Tensor bits = x.contiguous().view(at::kInt);
    const at::Tensor fraction = bits.bitwise_and(0x7fffff).bitwise_or(0x3f800000).view(at::kFloat);  // [1, 2)
    const at::Tensor exponent = bits.floor_divide(1 << 23) - 127;
    const at::Tensor large = fraction > 1.41421356f;
    const at::Tensor f = at::where(large, fraction * 0.5f, fraction) - 1.0f;
    const at::Tensor k = (exponent + large.to(at::kInt)).to(at::kFloat);
    return (log_polynomial(f) + k * kLn2Low) + k * kLn2High;
}

at::Tensor masses_of(const at::Tensor& exponentials) { return (exponentials * kMassUnit).to(at::kLong); }

// A distribution over tokens, as the sampler sees it.
struct Distribution {
    explicit Distribution(const at::Tensor& logits)
        : shifted(logits - at::amax(logits, -1, true)),
          exponentials(exp_not_positive(shifted)),
          masses(masses_of(exponentials)),
          total(masses.sum(-1, true)),
          scale(total.to(at::kFloat) * (1.0f / kMassUnit)) {}

    at::Tensor log_probabilities() const { return shifted - log_positive(scale); }

    // of one token a row, [R]
    at::Tensor log_probability(const at::Tensor& token) const {
        return (shifted.gather(-1, token.unsqueeze(-1)) - log_positive(scale)).squeeze(-1);
    }

    at::Tensor shifted;       // [R, V] logits less the row's largest
    at::Tensor exponentials;  // [R, V]
    at::Tensor masses;        // [R, V] int64
    at::Tensor total;         // [R, 1] int64
    at::Tensor scale;         // [R, 1] the sum of exponentials
};

// The same member of every row, as a tensor [R].
template <class Get>
at::Tensor column(const std::vector<SampleRow>& rows, at::ScalarType dtype, Get get) {
    std::vector<decltype(get(rows[0]))> values;
    for (const SampleRow& row : rows) values.push_back(get(row));
    return tensor_of(values, dtype);
}

// The options of all rows as tensors, and which of them any row has on.
struct Options {
    Options(const std::vector<SampleRow>& rows, int64_t vocab) {
        greedy = column(rows, at::kBool, [](const SampleRow& r) -> uint8_t { return r.greedy; });
        temperature = column(rows, at::kFloat, [](const SampleRow& r) { return r.temperature; });
        top_k = column(rows, at::kLong, [](const SampleRow& r) { return r.top_k; });
        nucleus = column(rows, at::kLong, [](const SampleRow& r) { return r.nucleus; });
        typical = column(rows, at::kBool, [](const SampleRow& r) -> uint8_t { return r.typical; });
        min_p = column(rows, at::kFloat, [](const SampleRow& r) { return r.min_p; });
        random = {
            column(rows, at::kLong, [](const SampleRow& r) { return static_cast<int64_t>(r.random >> 32); }),
            column(rows, at::kLong, [](const SampleRow& r) { return static_cast<int64_t>(r.random & 0xffffffff); })};
        for (const SampleRow& row : rows) {
            const bool has_nucleus = row.nucleus < int64_t{1} << kNucleusBits, has_top_k = row.top_k < vocab;
            any_sampled |= !row.greedy;
            any_nucleus |= has_nucleus;
            any_typical |= row.typical;
            any_min_p |= row.min_p > 0;
            top_k_holds_nucleus &= !has_nucleus || (has_top_k && !row.typical);
            if (has_top_k) most_top_k = std::max(most_top_k, row.top_k);
        }
    }

    std::vector<at::Tensor*> all() {
        return {&greedy, &temperature, &top_k, &nucleus, &typical, &min_p, &random[0], &random[1]};
    }

    at::Tensor greedy, temperature, top_k, nucleus, typical, min_p;  // [R]
    std::array<at::Tensor, 2> random;                                // [R] each: high and low 32 bits
    bool any_sampled = false, any_nucleus = false, any_typical = false, any_min_p = false;
    bool top_k_holds_nucleus = true;  // each top_p ends among the largest logits that its row's top_k leaves
    int64_t most_top_k = 0;           // of the rows that have it on; 0: none has
};

// The edits of all rows, E of them, as tensors; undefined where there are none.
struct Edits {
    Edits(const std::vector<SampleRow>& rows, int64_t vocab) {
        std::vector<int64_t> indices;
        std::vector<float> biases, repetitions, frequencies, presences;
        std::vector<uint8_t> bans;
        for (size_t row = 0; row < rows.size(); ++row) {
            for (int64_t i = 0; i < rows[row].num_edits; ++i) {
                const TokenEdit& edit = rows[row].edits[i];
                if (edit.token >= vocab) continue;
                indices.push_back(static_cast<int64_t>(row) * vocab + edit.token);
                biases.push_back(edit.bias);
                repetitions.push_back(edit.repetition);
                frequencies.push_back(edit.frequency);
                presences.push_back(edit.presence);
                bans.push_back(edit.bans != 0);
            }
        }
        if (indices.empty()) return;
        index = tensor_of(indices, at::kLong);
        bias = tensor_of(biases, at::kFloat);
        repetition = tensor_of(repetitions, at::kFloat);
        frequency = tensor_of(frequencies, at::kFloat);
        presence = tensor_of(presences, at::kFloat);
        banned = tensor_of(bans, at::kBool);
    }

    std::vector<at::Tensor*> all() { return {&index, &bias, &repetition, &frequency, &presence, &banned}; }

    // A copy of `logits` [R, V] after them.
    at::Tensor apply(const at::Tensor& logits) const {
        at::Tensor edited = logits.clone(at::MemoryFormat::Contiguous), flat = edited.view({-1});
        if (!index.defined()) return edited;
        at::Tensor l = flat.index_select(0, index) + bias;
        l = at::where(l < 0, l * repetition, l / repetition);
        l = l - frequency;
        l = l - presence;
        flat.scatter_(0, index, l.masked_fill(banned, -kInfinity));
        return edited;
    }

    at::Tensor index;                                  // [E] row * V + token
    at::Tensor bias, repetition, frequency, presence;  // [E]
    at::Tensor banned;                                 // [E]
};

// floor(a * b / 2^bits) for 0 <= a < 2^61, 0 <= b <= 2^bits, bits <= 31, without leaving int64
at::Tensor scaled(const at::Tensor& a, const at::Tensor& b, int bits) {
    const int64_t unit = int64_t{1} << bits;
    return a.floor_divide(unit) * b + (a.remainder(unit) * b).floor_divide(unit);
}

// In nats, [R, 1].
at::Tensor entropy_of(const Distribution& d, const at::Tensor& surprise) {
    const at::Tensor probability = d.exponentials / d.scale;
    const at::Tensor terms = at::where(d.masses > 0, probability * surprise, at::zeros_like(surprise));
    return masses_of(terms).sum(-1, true).to(at::kFloat) * (1.0f / kMassUnit);
}

// |surprise - entropy| of every token; infinite for forbidden ones.
at::Tensor distance_from_typical(const Distribution& d) {
    const at::Tensor surprise = -d.log_probabilities();
    return (surprise - entropy_of(d, surprise)).abs();
}

// As `crossing` for the order -logits, found among the largest logits [R, K] alone, which descend.
at::Tensor crossing_in_list(const at::Tensor& largest, const at::Tensor& target) {
    const at::Tensor masses = masses_of(exp_not_positive(largest - largest.narrow(-1, 0, 1)));
    const at::Tensor mass_before = at::cumsum(masses, -1) - masses;
    const at::Tensor last = at::sum(mass_before < target, -1, true) - 1;
    return -largest.gather(-1, last.clamp_min(0));
}

// Keeps tokens from the first in order until their mass reaches p; ties in order of id. For top_p the order is by logit, for
// typical_p by distance from the entropy. largest [R, K]: of the logits, where it holds each row's last token that is kept.
at::Tensor keep_nucleus(const at::Tensor& logits, const at::Tensor& largest, const Options& options) {
    const Distribution d(logits);
    at::Tensor order = -logits;
    if (options.any_typical) order = at::where(options.typical.unsqueeze(-1), distance_from_typical(d), order);
    const at::Tensor target = scaled(d.total, options.nucleus.unsqueeze(-1), kNucleusBits).clamp_min(1);
    const at::Tensor edge =
        options.top_k_holds_nucleus ? crossing_in_list(largest, target) : crossing(order, d.masses, target);
    const at::Tensor before = order < edge, tied = order == edge;
    const at::Tensor missing = target - at::sum(d.masses * before, -1, true);
    const at::Tensor last_tied = first_beyond(d.masses * tied, missing - 1);
    const at::Tensor keep = before.logical_or(tied.logical_and(ids_of(logits) <= last_tied));
    const at::Tensor off = (options.nucleus >= (int64_t{1} << kNucleusBits)).unsqueeze(-1);
    return logits.masked_fill(keep.logical_or(off).logical_not(), -kInfinity);
}

at::Tensor keep_min_p(const at::Tensor& logits, const at::Tensor& min_p) {
    const at::Tensor relative = exp_not_positive(logits - at::amax(logits, -1, true));
    return logits.masked_fill(relative < min_p.unsqueeze(-1), -kInfinity);
}

// floor(u * total / 2^64) for a 64-bit u in two halves and total < 2^61, [R, 1]
at::Tensor threshold(const std::array<at::Tensor, 2>& random, const at::Tensor& total) {
    constexpr int64_t low31 = (int64_t{1} << 31) - 1, low32 = (int64_t{1} << 32) - 1;
    const at::Tensor total_high = total.bitwise_right_shift(31), total_low = total.bitwise_and(low31);
    at::Tensor carry = at::zeros_like(total);
    for (const size_t half : {1, 0}) {  // the low half first
        const at::Tensor u = random[half].unsqueeze(-1);
        const at::Tensor high = u * total_high, low = u * total_low;  // u * total = high * 2^31 + low
        const at::Tensor rest = low.bitwise_and(low32) + carry.bitwise_and(low32) + high.bitwise_and(1) * (low31 + 1);
        carry = high.bitwise_right_shift(1) + low.bitwise_right_shift(32) + carry.bitwise_right_shift(32) +
                rest.bitwise_right_shift(32);
    }
    return carry;
}

// Inverse of the cumulative distribution in order of token id, [R].
at::Tensor draw(const Distribution& d, const std::array<at::Tensor, 2>& random) {
    return first_beyond(d.masses, threshold(random, d.total)).squeeze(-1);
}

// Steps 8 to 10 of the order of sampling.
at::Tensor filter(at::Tensor logits, const Options& options) {
    at::Tensor largest;  // [R, most_top_k] descending, after top_k
    if (options.most_top_k > 0) {
        largest = std::get<0>(at::topk(logits, options.most_top_k, -1));
        const at::Tensor kth = largest.gather(-1, options.top_k.clamp_max(options.most_top_k).unsqueeze(-1) - 1);
        const at::Tensor lowest = kth.masked_fill((options.top_k >= logits.size(-1)).unsqueeze(-1), -kInfinity);
        logits = logits.masked_fill(logits < lowest, -kInfinity);
        largest = largest.masked_fill(largest < lowest, -kInfinity);
    }
    if (options.any_nucleus) logits = keep_nucleus(logits, largest, options);
    if (options.any_min_p) logits = keep_min_p(logits, options.min_p);
    return logits;
}

// Which rows want a report, null where one does not.
struct Reports {
    explicit Reports(const std::vector<SampleRow>& rows) {
        for (const SampleRow& row : rows) {
            raw.push_back(row.raw);
            processed.push_back(row.processed);
            any_raw |= row.raw != nullptr;
            any_processed |= row.processed != nullptr;
        }
    }

    std::vector<const Report*> raw, processed;  // [R]
    bool any_raw = false, any_processed = false;
};

// What reports tell, as tensors, of L listed tokens; undefined where no row wants it.
struct Told {
    Told() = default;

    // Of the distribution `d` of `logits` [R, V].
    Told(const at::Tensor& logits, const Distribution& d, const std::vector<const Report*>& reports) {
        int64_t most = 0;
        bool want_entropy = false;
        for (const Report* report : reports) {
            if (!report) continue;
            most = std::max(most, report->num_top);
            want_entropy |= report->entropy != nullptr;
        }
        if (want_entropy) entropies = entropy_of(d, -d.log_probabilities());
        if (most == 0) return;
        ids = most_likely(logits, std::min(most, logits.size(1)));
        values = logits.gather(-1, ids);
        logprobs = d.shifted.gather(-1, ids) - log_positive(d.scale);
    }

    std::vector<at::Tensor*> all() { return {&entropies, &ids, &values, &logprobs}; }

    // Fills the reports of the rows that have one. On the host.
    void write(const std::vector<const Report*>& reports) const {
        const int64_t listed = ids.defined() ? ids.size(1) : 0;
        for (size_t row = 0; row < reports.size(); ++row) {
            const Report* report = reports[row];
            if (!report) continue;
            if (report->entropy) *report->entropy = entropies.const_data_ptr<float>()[row];
            for (int64_t i = 0; i < report->num_top; ++i) {
                const size_t place = row * static_cast<size_t>(listed) + static_cast<size_t>(i);
                const bool is_left = i < listed && values.const_data_ptr<float>()[place] > -kInfinity;
                report->ids[i] = is_left ? ids.const_data_ptr<int64_t>()[place] : -1;
                report->logprobs[i] =
                    is_left ? logprobs.const_data_ptr<float>()[place] : std::numeric_limits<float>::quiet_NaN();
            }
        }
    }

    at::Tensor entropies;              // [R, 1]
    at::Tensor ids, values, logprobs;  // [R, L]
};

std::vector<at::Tensor*> together(std::initializer_list<std::vector<at::Tensor*>> lists) {
    std::vector<at::Tensor*> all;
    for (const std::vector<at::Tensor*>& list : lists) all.insert(all.end(), list.begin(), list.end());
    return all;
}

at::Tensor is_not_finite(const at::Tensor& logits) { return logits.isnan().logical_or(logits == kInfinity).any(-1); }

// What is chosen and what is told of it, on the device.
struct Choice {
    Drawn drawn;
    Told raw, processed;
};

Choice choose(const at::Tensor& model_logits, const std::vector<SampleRow>& rows, bool want_logprobs,
              const Reports& reports, const TokenCounts& counts) {
    Choice choice;
    auto& [token, logprob, processed_logprob, on_host] = choice.drawn;
    Options options(rows, model_logits.size(1));
    Edits edits(rows, model_logits.size(1));
    on_host = move_together(together({options.all(), edits.all()}), model_logits.device(), /*non_blocking=*/true);
    at::Tensor logits = counts.penalise(edits.index.defined() ? edits.apply(model_logits) : model_logits);
    const at::Tensor nothing_allowed = at::amax(logits, -1) == -kInfinity;
    token = most_likely(logits);
    if (options.any_sampled) logits = logits / options.temperature.unsqueeze(-1);
    const at::Tensor overflow = at::amax(logits, -1).abs() == kInfinity;
    if (options.any_sampled) logits = filter(logits, options);
    if (options.any_sampled || want_logprobs || reports.any_processed) {
        const Distribution processed(logits);
        if (options.any_sampled) token = at::where(options.greedy, token, draw(processed, options.random));
        if (want_logprobs) processed_logprob = processed.log_probability(token);
        if (reports.any_processed) choice.processed = Told(logits, processed, reports.processed);
    }
    if (want_logprobs || reports.any_raw) {
        const Distribution raw(model_logits);
        if (want_logprobs) logprob = raw.log_probability(token);
        if (reports.any_raw) choice.raw = Told(model_logits, raw, reports.raw);
    }
    token = at::where(overflow, at::full_like(token, kOverflow), token);
    token = at::where(nothing_allowed, at::full_like(token, kNothingAllowed), token);
    token = at::where(is_not_finite(model_logits), at::full_like(token, kNotFinite), token);
    return choice;
}

// Most logits at a time in reference_log_probability, whose intermediate tensors are several times as large. Rows are
// independent of each other, so it changes no bit.
constexpr int64_t kMostLogits = int64_t{1} << 20;

}  // namespace

at::Tensor edited_copy(const at::Tensor& logits, const std::vector<SampleRow>& rows) {
    Edits edits(rows, logits.size(1));
    move_together(edits.all(), logits.device());
    return edits.apply(logits);
}

void reference_log_probability(Context&, const LogProbabilityArgs& args) {
    const int64_t num_rows = args.logits.size(0), most = std::max<int64_t>(1, kMostLogits / args.logits.size(1));
    for (int64_t first = 0; first < num_rows; first += most) {
        const int64_t n = std::min(most, num_rows - first);
        const at::Tensor logits = args.logits.narrow(0, first, n);
        const at::Tensor logprob = Distribution(logits).log_probability(args.token.narrow(0, first, n));
        args.logprob.narrow(0, first, n)
            .copy_(logprob.masked_fill(is_not_finite(logits), std::numeric_limits<float>::quiet_NaN()));
    }
}

Drawn draw_on_device(const at::Tensor& logits, const std::vector<SampleRow>& rows, bool want_logprobs,
                     const TokenCounts& counts) {
    return choose(logits, rows, want_logprobs, Reports(rows), counts).drawn;
}

void reference_sample(Context&, const SampleArgs& args) {
    const Reports reports(args.rows);
    Choice choice = choose(args.logits, args.rows, args.want_logprobs, reports, TokenCounts());
    auto& [token, logprob, processed_logprob, on_host] = choice.drawn;
    move_together(together({{&token, &logprob, &processed_logprob}, choice.raw.all(), choice.processed.all()}),
                  at::kCPU);
    choice.raw.write(reports.raw);
    choice.processed.write(reports.processed);
    for (size_t row = 0; row < args.rows.size(); ++row) {
        args.samples[row] = {token.const_data_ptr<int64_t>()[row], 0, 0, args.rows[row].raw, args.rows[row].processed};
        if (!args.want_logprobs) continue;
        args.samples[row].logprob = logprob.const_data_ptr<float>()[row];
        args.samples[row].processed_logprob = processed_logprob.const_data_ptr<float>()[row];
    }
}

}  // namespace demiurgic
