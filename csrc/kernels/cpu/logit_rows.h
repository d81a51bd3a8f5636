#pragma once

// What the sampler takes of a whole row of logits: the largest, masses, entropy. Included inside the namespace of an
// instruction set. V: tokens of the row.

#include "kernels/cpu/lanes.h"

constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -3.40282347e38f;

// A row is cut into stripes of consecutive tokens. The tokens of a stripe in one lane are a group; the largest of each
// group tells where it is worth looking.
constexpr int64_t kStripe = 16 * kLanes;

inline int64_t num_stripes(int64_t vocab) { return (vocab + kStripe - 1) / kStripe; }

// f(i, lanes) for the lanes of one stripe from the token i on. Behind the last token they are -inf.
template <class F>
inline void for_stripe(const float* logits, int64_t vocab, int64_t stripe, F f) {
    const int64_t first = stripe * kStripe, end = first + kStripe;
    if (end <= vocab) {
        for (int64_t i = first; i < end; i += kLanes) f(i, load_lanes(logits + i));
    } else {
        for (int64_t i = first; i < vocab; i += kLanes) {
            const bool whole = i + kLanes <= vocab;
            f(i, whole ? load_lanes(logits + i) : load_lanes(logits + i, vocab - i, -kInfinity));
        }
    }
}

// The largest of each group; false where a logit is NaN or +inf. maxima: [stripes * kLanes]; copy: [stripes * kStripe],
// or null.
inline bool find_maxima(const float* logits, int64_t vocab, float* maxima, float* copy) {
    IntLanes finite = IntLanes{} - 1;
    for (int64_t stripe = 0; stripe < num_stripes(vocab); ++stripe) {
        FloatLanes largest = spread(-kInfinity);
        for_stripe(logits, vocab, stripe, [&](int64_t i, FloatLanes x) {
            finite &= x < kInfinity;
            largest = larger_lanes(largest, x);
            if (copy) store_lanes(copy + i, x);
        });
        store_lanes(maxima + stripe * kLanes, largest);
    }
    return !any_lane(~finite);
}

// n: a multiple of kLanes, 1 or more
inline float largest_of(const float* x, int64_t n) {
    FloatLanes lanes = load_lanes(x);
    for (int64_t i = kLanes; i < n; i += kLanes) lanes = larger_lanes(lanes, load_lanes(x + i));
    float largest = lanes[0];
    for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

inline int64_t mass_of(float exponential) { return static_cast<int64_t>(exponential * arithmetic::kMassUnit); }

// The sum of the masses of one stripe's tokens, e^(logit / temperature - largest) each.
inline int64_t mass_of_stripe(const float* logits, int64_t vocab, int64_t stripe, float temperature, float largest) {
    constexpr float kHalf = 1048576.0f;  // 2^20: a mass in two halves, each in 32 bits; its 2^40ths are exact
    static_assert(kHalf * kHalf == arithmetic::kMassUnit);
    IntLanes high = {}, low = {};
    for_stripe(logits, vocab, stripe, [&](int64_t, FloatLanes x) {
        const FloatLanes divided = temperature == 1.0f ? x : x / temperature;
        const FloatLanes scaled = exp_not_positive(divided - largest) * kHalf;
        const IntLanes whole = truncated(scaled);
        high += whole;
        low += truncated((scaled - floats_of(whole)) * kHalf);
    });
    int64_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += (int64_t{high[i]} << 20) + low[i];
    return sum;
}

inline int64_t mass_of_row(const float* logits, int64_t vocab, float temperature, float largest) {
    int64_t sum = 0;
    for (int64_t i = 0; i < num_stripes(vocab); ++i) sum += mass_of_stripe(logits, vocab, i, temperature, largest);
    return sum;
}

// Of a token whose logit is `shifted` less than the largest, where all masses sum to `total`.
inline float log_probability_of(float shifted, int64_t total) {
    return shifted - log_positive(static_cast<float>(total) * (1.0f / arithmetic::kMassUnit));
}

// floor(a * b / 2^bits)
inline int64_t scaled_by(int64_t a, uint64_t b, int bits) {
    return static_cast<int64_t>(static_cast<unsigned __int128>(a) * b >> bits);
}

// Surprise weighted by probability, of a token whose exponential is `exponential` and whose logit is `shifted` less than
// the largest. Both may be lanes.
template <class T>
inline T entropy_term(T exponential, T shifted, float scale, float log_scale) {
    return exponential / scale * -(shifted - log_scale);
}

// The entropy of a row, in nats, whose masses sum to `total`: a sum of integers, as the masses are.
inline float entropy_of_row(const float* logits, int64_t vocab, float temperature, float largest, int64_t total) {
    constexpr float kHalf = 1048576.0f;  // as in mass_of_stripe
    const float scale = static_cast<float>(total) * (1.0f / arithmetic::kMassUnit), log_scale = log_positive(scale);
    int64_t sum = 0;
    for (int64_t stripe = 0; stripe < num_stripes(vocab); ++stripe) {
        IntLanes high = {}, low = {};
        for_stripe(logits, vocab, stripe, [&](int64_t, FloatLanes x) {
            const FloatLanes shifted = (temperature == 1.0f ? x : x / temperature) - largest;
            const FloatLanes exponential = exp_not_positive(shifted);
            const FloatLanes term = entropy_term(exponential, shifted, scale, log_scale) * kHalf;
            const FloatLanes scaled = exponential * arithmetic::kMassUnit >= 1.0f ? term : spread(0.0f);
            const IntLanes whole = truncated(scaled);
            high += whole;
            low += truncated((scaled - floats_of(whole)) * kHalf);
        });
        for (int i = 0; i < kLanes; ++i) sum += int64_t{high[i]} * (int64_t{1} << 20) + low[i];
    }
    return static_cast<float>(sum) * (1.0f / arithmetic::kMassUnit);
}
