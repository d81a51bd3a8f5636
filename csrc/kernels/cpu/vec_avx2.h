#pragma once

#include "kernels/cpu/unroll.h"

// 8 lanes of float32 (AVX2, FMA and F16C). Included inside the namespace of an instruction set.

struct Vec {
    static constexpr int N = 8;
    __m256 v;
};

inline __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }

inline Vec widen(__m128i bfloat16) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat16), 16))};
}
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Vec load(const BFloat16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// The first n lanes, n < 8; the others are 0 and not read.
inline Vec load_first(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
template <class T>
inline Vec load_first(const T* p, int64_t n) {
    T padded[8] = {};
    for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
    return load(padded);
}

inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline void store(Float16* p, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(BFloat16* p, Vec x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    const __m256i result = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec round(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_two(Vec x, Vec k) {  // k from -126 to 127
    return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(
                                   _mm256_add_epi32(_mm256_cvtps_epi32(k.v), _mm256_set1_epi32(127)), 23)))};
}
inline Vec keep_first(Vec x, int64_t n) { return {_mm256_and_ps(x.v, _mm256_castsi256_ps(first(n)))}; }
inline Vec where_first(int64_t n, Vec x, Vec y) { return {_mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(first(n)))}; }

// 8 rows of 8 lanes, `stride` bytes apart, as columns.
inline void load_turned(const char* p, int64_t stride, Vec* out) {
    const auto part = [&](int row, int half) {
        return _mm_loadu_ps(reinterpret_cast<const float*>(p + row * stride) + 4 * half);
    };
    DEMIURGIC_UNROLL for (int half = 0; half < 2; ++half) {
        __m256 a[4];  // lanes 4 half to 4 half + 3 of row i, then of row i + 4
        DEMIURGIC_UNROLL for (int i = 0; i < 4; ++i) a[i] = _mm256_set_m128(part(i + 4, half), part(i, half));
        const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1]));
        const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3]));
        const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
        const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
        out[4 * half] = {_mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23))};
        out[4 * half + 1] = {_mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23))};
        out[4 * half + 2] = {_mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23))};
        out[4 * half + 3] = {_mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23))};
    }
}

inline float sum(Vec x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

template <int n>
inline void sums(const Vec* x, float* out) {
    for (int i = 0; i < n; ++i) out[i] = sum(x[i]);
}

inline float largest(Vec x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
