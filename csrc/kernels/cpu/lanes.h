#pragma once

// Lanes of float32 and int32 as the compiler's own vector types, and the sampler's exp and log on them: one rounding an
// operation, so that every instruction set gives the same bits. Included inside the namespace of an instruction set, after
// kernels/arithmetic.h.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float FloatLanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

inline FloatLanes spread(float x) { return x - FloatLanes{}; }
inline IntLanes truncated(FloatLanes x) { return __builtin_convertvector(x, IntLanes); }
inline FloatLanes floats_of(IntLanes x) { return __builtin_convertvector(x, FloatLanes); }

inline FloatLanes load_lanes(const float* p) {
    FloatLanes x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

// The first n lanes, n < kLanes; the others are `rest` and not read.
inline FloatLanes load_lanes(const float* p, int64_t n, float rest) {
    FloatLanes x = spread(rest);
    for (int64_t i = 0; i < n; ++i) x[i] = p[i];
    return x;
}

inline void store_lanes(float* p, FloatLanes x) { __builtin_memcpy(p, &x, sizeof x); }

inline FloatLanes larger_lanes(FloatLanes a, FloatLanes b) { return a > b ? a : b; }  // b where either is NaN

inline bool any_lane(IntLanes mask) {
    int32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= mask[i];
    return found != 0;
}

// As a type of this namespace, so that what arithmetic.h makes of it is compiled for this instruction set alone.
struct Lanes {
    FloatLanes v;
};
inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
inline Lanes operator+(Lanes a, float b) { return {a.v + b}; }
inline Lanes operator*(Lanes a, float b) { return {a.v * b}; }

// e^x for x <= 0
inline FloatLanes exp_not_positive(FloatLanes x) {
    const FloatLanes clamped = x > -80.0f ? x : spread(-80.0f);
    const FloatLanes scaled = clamped * arithmetic::kLog2E + 0.5f;
    const IntLanes toward_zero = truncated(scaled);
    const IntLanes k = toward_zero + (floats_of(toward_zero) > scaled);  // floor: a mask that is set is -1
    const FloatLanes whole = floats_of(k);
    const Lanes r = {(clamped - whole * arithmetic::kLn2High) - whole * arithmetic::kLn2Low};
    const FloatLanes power = __builtin_bit_cast(FloatLanes, (k + 127) << 23);  // 2^k
    return arithmetic::exp_polynomial(r).v * power;
}

// ln(x) for normal x > 0
inline float log_positive(float x) {
    const int32_t bits = __builtin_bit_cast(int32_t, x);
    const float fraction = __builtin_bit_cast(float, (bits & 0x7fffff) | 0x3f800000);  // [1, 2)
    const bool large = fraction > 1.41421356f;
    const float f = (large ? fraction * 0.5f : fraction) - 1.0f;
    const float k = static_cast<float>((bits >> 23) - 127 + large);
    return (arithmetic::log_polynomial(Lanes{spread(f)}).v[0] + k * arithmetic::kLn2Low) + k * arithmetic::kLn2High;
}
