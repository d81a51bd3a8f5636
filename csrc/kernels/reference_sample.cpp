#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "kernels/arithmetic.h"
#include "kernels/reference.h"

// The sampler in plain ATen: the order of sampling (docs/architecture.md) step by step, in the arithmetic that makes every
// device draw the same token from the same logits. R rows, V tokens.
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

at::Tensor apply_edits(const at::Tensor& logits, const LogitEdits& edits) {
    if (!edits.index.defined()) return logits;
    at::Tensor l = logits.reshape({-1}).index_select(0, edits.index) + edits.bias;
    l = at::where(l < 0, l * edits.repetition, l / edits.repetition);
    l = l - edits.frequency;
    l = l - edits.presence;
    l = l.masked_fill(edits.banned, -kInfinity);
    return logits.reshape({-1}).scatter(0, edits.index, l).view_as(logits);
}

// The lowest id among the largest logits, [R].
at::Tensor most_likely(const at::Tensor& logits) {
    const int64_t vocab = logits.size(-1);
    const at::Tensor ids = at::arange(vocab, logits.options().dtype(at::kLong)).expand_as(logits);
    const at::Tensor best = logits == at::amax(logits, -1, true);
    return at::amin(at::where(best, ids, at::full_like(ids, vocab - 1)), -1);
}

at::Tensor keep_top_k(const at::Tensor& logits, const at::Tensor& top_k, int64_t most) {
    const at::Tensor largest = std::get<0>(at::topk(logits, most, -1));  // [R, most], descending
    const at::Tensor kth = largest.gather(-1, top_k.clamp_max(most).unsqueeze(-1) - 1);
    const at::Tensor off = (top_k >= logits.size(-1)).unsqueeze(-1);
    return logits.masked_fill((logits < kth).logical_and(off.logical_not()), -kInfinity);
}

// floor(a * b / 2^bits) for 0 <= a < 2^61, 0 <= b <= 2^bits, bits <= 31, without leaving int64
at::Tensor scaled(const at::Tensor& a, const at::Tensor& b, int bits) {
    const int64_t unit = int64_t{1} << bits;
    return a.floor_divide(unit) * b + (a.remainder(unit) * b).floor_divide(unit);
}

// |surprise - entropy| of every token; infinite for forbidden ones.
at::Tensor distance_from_typical(const Distribution& d) {
    const at::Tensor surprise = -d.log_probabilities();
    const at::Tensor probability = d.exponentials / d.scale;
    const at::Tensor terms = at::where(d.masses > 0, probability * surprise, at::zeros_like(surprise));
    const at::Tensor entropy = masses_of(terms).sum(-1, true).to(at::kFloat) * (1.0f / kMassUnit);
    return (surprise - entropy).abs();
}

// Keeps tokens from the first in order until their mass reaches p; ties in order of id. For top_p the order is by logit, for
// typical_p by distance from the entropy.
at::Tensor keep_nucleus(const at::Tensor& logits, const SampleArgs& args) {
    const Distribution d(logits);
    at::Tensor order = -logits;
    if (args.any_typical) order = at::where(args.typical.unsqueeze(-1), distance_from_typical(d), order);
    const at::Tensor ids = std::get<1>(at::sort(order, /*stable=*/true, -1, /*descending=*/false));
    const at::Tensor sorted = d.masses.gather(-1, ids);
    const at::Tensor mass_before = at::cumsum(sorted, -1) - sorted;
    const at::Tensor target = scaled(d.total, args.nucleus.unsqueeze(-1), kNucleusBits).clamp_min(1);
    const at::Tensor keep_sorted = mass_before < target;
    const at::Tensor keep = at::zeros_like(keep_sorted).scatter(-1, ids, keep_sorted);
    const at::Tensor off = (args.nucleus >= (int64_t{1} << kNucleusBits)).unsqueeze(-1);
    return logits.masked_fill(keep.logical_or(off).logical_not(), -kInfinity);
}

at::Tensor keep_min_p(const at::Tensor& logits, const at::Tensor& min_p) {
    const at::Tensor relative = exp_not_positive(logits - at::amax(logits, -1, true));
    return logits.masked_fill(relative < min_p.unsqueeze(-1), -kInfinity);
}

// floor(u * total / 2^64) for a 64-bit u in two halves and total < 2^61, [R, 1]
at::Tensor threshold(const at::Tensor& random, const at::Tensor& total) {
    constexpr int64_t low31 = (int64_t{1} << 31) - 1, low32 = (int64_t{1} << 32) - 1;
    const at::Tensor total_high = total.bitwise_right_shift(31), total_low = total.bitwise_and(low31);
    at::Tensor carry = at::zeros_like(total);
    for (const int64_t half : {1, 0}) {  // the low half first
        const at::Tensor u = random.narrow(-1, half, 1);
        const at::Tensor high = u * total_high, low = u * total_low;  // u * total = high * 2^31 + low
        const at::Tensor rest = low.bitwise_and(low32) + carry.bitwise_and(low32) + high.bitwise_and(1) * (low31 + 1);
        carry = high.bitwise_right_shift(1) + low.bitwise_right_shift(32) + carry.bitwise_right_shift(32) +
                rest.bitwise_right_shift(32);
    }
    return carry;
}

// Inverse of the cumulative distribution in order of token id, [R].
at::Tensor draw(const Distribution& d, const at::Tensor& random) {
    const at::Tensor below = at::cumsum(d.masses, -1) <= threshold(random, d.total);
    return below.to(at::kLong).sum(-1).clamp_max(d.masses.size(-1) - 1);
}

at::Tensor filter(at::Tensor logits, const SampleArgs& args) {
    if (args.most_top_k > 0) logits = keep_top_k(logits, args.top_k, args.most_top_k);
    if (args.any_nucleus) logits = keep_nucleus(logits, args);
    if (args.any_min_p) logits = keep_min_p(logits, args.min_p);
    return logits;
}

at::Tensor is_not_finite(const at::Tensor& logits) { return logits.isnan().logical_or(logits == kInfinity).any(-1); }

// Most logits at a time in reference_log_probability, whose intermediate tensors are several times as large. Rows are
// independent of each other, so it changes no bit.
constexpr int64_t kMostLogits = int64_t{1} << 20;

}  // namespace

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

void reference_sample(Context&, const SampleArgs& args) {
    at::Tensor logits = apply_edits(args.logits, args.edits);
    const at::Tensor nothing_allowed = at::amax(logits, -1) == -kInfinity;
    at::Tensor token = most_likely(logits);
    if (args.any_sampled) logits = logits / args.temperature.unsqueeze(-1);
    const at::Tensor overflow = at::amax(logits, -1).abs() == kInfinity;
    if (args.any_sampled) logits = filter(logits, args);
    if (args.any_sampled || args.want_logprobs) {
        const Distribution processed(logits);
        if (args.any_sampled) token = at::where(args.greedy, token, draw(processed, args.random));
        if (args.want_logprobs) {
            args.logprob.copy_(Distribution(args.logits).log_probability(token));
            args.processed_logprob.copy_(processed.log_probability(token));
        }
    }
    token = at::where(overflow, at::full_like(token, kOverflow), token);
    token = at::where(nothing_allowed, at::full_like(token, kNothingAllowed), token);
    args.token.copy_(at::where(is_not_finite(args.logits), at::full_like(token, kNotFinite), token));
}

}  // namespace demiurgic
