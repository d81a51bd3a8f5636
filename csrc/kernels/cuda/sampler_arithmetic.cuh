#pragma once

#include <cstdint>

#include "kernels/arithmetic.h"
#include "kernels/cuda/device.cuh"

// The sampler's arithmetic on the device, number by number, as kernels/cpu has it on lanes: the same bits.
namespace demiurgic::cuda {

// A float32 whose operations round once each.
struct Rounded {
    float v;
};

__host__ __device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) { return {rounded_product(a.v, b.v)}; }
__host__ __device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) { return {rounded_sum(a.v, b.v)}; }
__host__ __device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) { return {rounded_sum(a.v, -b.v)}; }
__host__ __device__ __forceinline__ Rounded operator*(Rounded a, float b) { return a * Rounded{b}; }
__host__ __device__ __forceinline__ Rounded operator+(Rounded a, float b) { return a + Rounded{b}; }
__device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) { return {__fdiv_rn(a.v, b.v)}; }

// e^x for x <= 0
__device__ __forceinline__ float exp_not_positive(float x) {
    const Rounded clamped = {x > -80.0f ? x : -80.0f};
    const Rounded whole = {floorf((clamped * arithmetic::kLog2E + 0.5f).v)};
    const Rounded r = (clamped - whole * arithmetic::kLn2High) - whole * arithmetic::kLn2Low;
    const Rounded power = {__int_as_float((static_cast<int>(whole.v) + 127) << 23)};  // 2^whole
    return (arithmetic::exp_polynomial(r) * power).v;
}

// ln(x) for normal x > 0
__device__ __forceinline__ float log_positive(float x) {
    const int bits = __float_as_int(x);
    const float fraction = __int_as_float((bits & 0x7fffff) | 0x3f800000);  // [1, 2)
    const bool large = fraction > 1.41421356f;
    const Rounded f = Rounded{large ? fraction * 0.5f : fraction} + -1.0f;
    const Rounded k = {static_cast<float>((bits >> 23) - 127 + large)};
    return ((arithmetic::log_polynomial(f) + k * arithmetic::kLn2Low) + k * arithmetic::kLn2High).v;
}

__device__ __forceinline__ int64_t mass_of(float exponential) {
    return static_cast<int64_t>(exponential * arithmetic::kMassUnit);
}

// The sum of exponentials whose masses sum to `total`.
__device__ __forceinline__ float scale_of(int64_t total) {
    return static_cast<float>(total) * (1.0f / arithmetic::kMassUnit);
}

// Of a token whose logit is `shifted` less than the largest, where all masses sum to `total`.
__device__ __forceinline__ float log_probability_of(float shifted, int64_t total) {
    return shifted - log_positive(scale_of(total));
}

// floor(a * b / 2^bits), 0 < bits <= 64
__device__ __forceinline__ int64_t scaled_by(int64_t a, uint64_t b, int bits) {
    const uint64_t high = __umul64hi(static_cast<uint64_t>(a), b);
    if (bits == 64) return static_cast<int64_t>(high);
    return static_cast<int64_t>(high << (64 - bits) | static_cast<uint64_t>(a) * b >> bits);
}

// An integer in the order of float32 numbers; -0 and 0 are the same.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float float_of_key(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

}  // namespace demiurgic::cuda
