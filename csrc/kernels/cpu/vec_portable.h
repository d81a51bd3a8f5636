#pragma once

// 8 lanes of float32 in plain C++, for any CPU. Included inside the namespace of an instruction set.

struct Vec {
    static constexpr int N = 8;
    float v[8];
};

template <class F>
inline Vec each(F f) {
    Vec out;
    for (int i = 0; i < Vec::N; ++i) out.v[i] = f(i);
    return out;
}

inline float as_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Float16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
    if (rest >= 0x400) return as_float(sign | ((rest << 13) + (112u << 23)));
    const float subnormal = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, BFloat16& out) {
    const uint32_t bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
    out.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded >> 16);
}
inline void narrow(float x, Float16& out) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    uint32_t half;
    if (rest > 0x7f800000) {
        half = 0x7e00;
    } else if (rest >= 0x477ff000) {  // from 65520 on
        half = 0x7c00;
    } else if (rest >= 0x38800000) {  // normal: 2^-14 and more
        half = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
    } else {  // adding 0.5 puts the units of 2^-24 into the last bits of the mantissa, rounded to even
        half = bits_of(as_float(rest) + 0.5f) - 0x3f000000;
    }
    out.bits = static_cast<uint16_t>(sign | half);
}

inline Vec zero() { return {}; }
inline Vec broadcast(float x) {
    return each([&](int) { return x; });
}
template <class T>
inline Vec load(const T* p) {
    return each([&](int i) { return widen(p[i]); });
}
// The first n lanes, n < 8; the others are 0 and not read.
template <class T>
inline Vec load_first(const T* p, int64_t n) {
    return each([&](int i) { return i < n ? widen(p[i]) : 0.0f; });
}
template <class T>
inline void store(T* p, Vec x) {
    for (int i = 0; i < Vec::N; ++i) narrow(x.v[i], p[i]);
}

inline Vec operator+(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec operator-(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Vec operator*(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec operator/(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
// Rounds twice: a fused one would be a call of the library where the CPU has none.
inline Vec fma(Vec a, Vec b, Vec c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec max(Vec a, Vec b) {  // b where either is NaN
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec min(Vec a, Vec b) {  // b where either is NaN
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec round(Vec x) {  // |x| < 2^22: the sum has no bits for a fraction
    return each([&](int i) { return (x.v[i] + 12582912.0f) - 12582912.0f; });
}
inline Vec times_power_of_two(Vec x, Vec k) {  // k from -126 to 127
    return each([&](int i) {
        const float exponent = k.v[i] == k.v[i] ? k.v[i] : 0.0f;  // x is NaN too
        return x.v[i] * as_float(static_cast<uint32_t>(static_cast<int32_t>(exponent) + 127) << 23);
    });
}
inline Vec keep_first(Vec x, int64_t n) {
    return each([&](int i) { return i < n ? x.v[i] : 0.0f; });
}
inline Vec where_first(int64_t n, Vec x, Vec y) {
    return each([&](int i) { return i < n ? x.v[i] : y.v[i]; });
}

// 8 rows of 8 lanes, `stride` bytes apart, as columns.
inline void load_turned(const char* p, int64_t stride, Vec* out) {
    for (int i = 0; i < Vec::N; ++i) {
        float row[Vec::N];
        __builtin_memcpy(row, p + i * stride, sizeof row);
        for (int j = 0; j < Vec::N; ++j) out[j].v[i] = row[j];
    }
}

inline float sum(Vec x) {
    const float* v = x.v;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

template <int n>
inline void sums(const Vec* x, float* out) {
    for (int i = 0; i < n; ++i) out[i] = sum(x[i]);
}

inline float largest(Vec x) {
    float most = x.v[0];
    for (int i = 1; i < Vec::N; ++i) most = x.v[i] > most ? x.v[i] : most;
    return most;
}
