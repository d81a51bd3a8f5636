#pragma once

// What our kernels use of CUDA's float16, on the host.

#include <cmath>
#include <cstdint>

#include "cuda_runtime.h"

struct __half {
    unsigned short bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    const float sign = x.bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(1.0f * mantissa, -24));
}
// To the nearest, ties to even.
inline __half __float2half_rn(float x) {
    const auto sign = static_cast<unsigned short>(std::signbit(x) ? 0x8000 : 0);
    const float size = std::fabs(x);
    if (std::isnan(x)) return {0x7fff};
    if (size >= 65520) return {static_cast<unsigned short>(sign | 0x7c00)};
    const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 1024 and more: normal
    return {static_cast<unsigned short>(sign | (((exponent + 14) << 10) + units))};
}
inline __half __float2half(float x) { return __float2half_rn(x); }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
