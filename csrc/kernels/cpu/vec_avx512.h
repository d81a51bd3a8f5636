#pragma once

#include "kernels/cpu/unroll.h"

// 16 lanes of float32 (AVX-512F, VL, BW, DQ, and F16C). Included inside the namespace of an instruction set.

struct Vec {
    static constexpr int N = 16;
    __m512 v;
};

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Vec widen(__m256i bfloat16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16))};
}
inline Vec load(const BFloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// The first n lanes, n < 16; the others are 0 and not read.
inline Vec load_first(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load_first(const Float16* p, int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
inline Vec load_first(const BFloat16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

inline __m256i narrow_to_bfloat16(Vec x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
}

inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline void store(BFloat16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_to_bfloat16(x)); }
inline void store(Float16* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec round(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_two(Vec x, Vec k) { return {_mm512_scalef_ps(x.v, k.v)}; }
inline Vec keep_first(Vec x, int64_t n) { return {_mm512_maskz_mov_ps(first(n), x.v)}; }  // n < 16; the others are 0
inline Vec where_first(int64_t n, Vec x, Vec y) { return {_mm512_mask_mov_ps(y.v, first(n), x.v)}; }

// 16 rows of 16 lanes, `stride` bytes apart, as columns.
inline void load_turned(const char* p, int64_t stride, Vec* out) {
    __m512 a[4][4];  // a[q][i]: lanes 4 q to 4 q + 3 of rows i, i + 4, i + 8, i + 12
    DEMIURGIC_UNROLL for (int i = 0; i < 4; ++i) {
        DEMIURGIC_UNROLL for (int j = 0; j < 4; ++j) {
            const float* row = reinterpret_cast<const float*>(p + (i + 4 * j) * stride);
            const __mmask16 mask = static_cast<__mmask16>(0xf << 4 * j);
            DEMIURGIC_UNROLL for (int q = 0; q < 4; ++q) {
                const __m128 part = _mm_loadu_ps(row + 4 * q);
                a[q][i] = j == 0 ? _mm512_castps128_ps512(part) : _mm512_mask_broadcast_f32x4(a[q][i], mask, part);
            }
        }
    }
    DEMIURGIC_UNROLL for (int q = 0; q < 4; ++q) {
        const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(a[q][0], a[q][1]));
        const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(a[q][2], a[q][3]));
        const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(a[q][0], a[q][1]));
        const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(a[q][2], a[q][3]));
        out[4 * q] = {_mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23))};
        out[4 * q + 1] = {_mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23))};
        out[4 * q + 2] = {_mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23))};
        out[4 * q + 3] = {_mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23))};
    }
}

// Six rows of 16 lanes of 32 bits: for i < 8 the six of lane i, and behind them the six of lane i + 8, to place(i) [12].
template <class Row, class F>
[[gnu::always_inline]] inline void turn_six(const Row* rows, F place) {
    const auto row = [&](int i) { return __builtin_bit_cast(__m512, rows[i]); };
    // Of every four lanes: rows 0 to 3 of the c-th in four[c], rows 4 and 5 of the first or last two in two[0] or two[1].
    const __m512 two[] = {_mm512_unpacklo_ps(row(4), row(5)), _mm512_unpackhi_ps(row(4), row(5))};
    __m512 four[4];
    DEMIURGIC_UNROLL for (int half = 0; half < 2; ++half) {
        const auto merge = [&](int i) {
            return _mm512_castps_pd(half ? _mm512_unpackhi_ps(row(i), row(i + 1))
                                         : _mm512_unpacklo_ps(row(i), row(i + 1)));
        };
        four[2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(merge(0), merge(2)));
        four[2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(merge(0), merge(2)));
    }
    DEMIURGIC_UNROLL for (int i = 0; i < 8; ++i) {
        // Where lanes i and i + 8 are: from a and a + 8 on in four[i % 4], and from b and b + 8 on in two[i % 4 / 2].
        const int a = i / 4 * 4, b = 16 + a + i % 2 * 2;
        const __m512i order =
            _mm512_setr_epi32(a, a + 1, a + 2, a + 3, b, b + 1, a + 8, a + 9, a + 10, a + 11, b + 8, b + 9, 0, 0, 0, 0);
        _mm512_mask_storeu_ps(place(i), 0xfff, _mm512_permutex2var_ps(four[i % 4], order, two[i % 4 / 2]));
    }
}

// The sums of 16 vectors in one: at each level lane i meets lane i + 8, i + 4, i + 2, i + 1 of its vector, as in sum().
inline Vec halves(Vec a, Vec b) {
    return {_mm512_add_ps(_mm512_mask_blend_ps(0xff00, a.v, b.v), _mm512_shuffle_f32x4(a.v, b.v, 0x4e))};
}
inline Vec quarters(Vec a, Vec b) {
    const __m512i other = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    return {_mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, a.v, b.v), _mm512_permutex2var_ps(a.v, other, b.v))};
}
inline Vec pairs(Vec a, Vec b) {
    return {
        _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a.v, b.v), _mm512_shuffle_ps(a.v, b.v, _MM_SHUFFLE(1, 0, 3, 2)))};
}
inline Vec singles(Vec a, Vec b) {
    const __m512i other = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    return {_mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, a.v, b.v), _mm512_permutex2var_ps(a.v, other, b.v))};
}

// The sums of `n` vectors of 16 lanes each, n from 1 to 16, to out[0..n). Where n is at most 8, 4 or 2, a level has half as
// many vectors, and a sum is in 2, 4 or 8 neighbouring lanes.
template <int n>
inline void sums(const Vec* x, float* out) {
    constexpr int places = n > 8 ? 16 : n > 4 ? 8 : n > 2 ? 4 : 2;
    constexpr int half = places / 2, quarter = half > 1 ? half / 2 : 1, pair = quarter > 1 ? quarter / 2 : 1;
    Vec level[half];
    DEMIURGIC_UNROLL for (int i = 0; i < half; ++i) level[i] = halves(x[i], i + half < n ? x[i + half] : x[i]);
    DEMIURGIC_UNROLL for (int i = 0; i < quarter; ++i) level[i] = quarters(level[i], level[half > 1 ? i + quarter : 0]);
    DEMIURGIC_UNROLL for (int i = 0; i < pair; ++i) level[i] = pairs(level[i], level[quarter > 1 ? i + pair : 0]);
    const __m512 all = singles(level[0], level[pair > 1 ? 1 : 0]).v;
    if constexpr (n == 16) {
        _mm512_storeu_ps(out, all);
    } else if constexpr (places == 16) {
        _mm512_mask_storeu_ps(out, first(n), all);
    } else {
        constexpr __mmask16 apart = places == 8 ? 0x5555 : places == 4 ? 0x1111 : 0x0101;
        _mm512_mask_storeu_ps(out, first(n), _mm512_maskz_compress_ps(apart, all));
    }
}

inline float sum(Vec x) {
    float out;
    sums<1>(&x, &out);
    return out;
}

inline float largest(Vec x) { return _mm512_reduce_max_ps(x.v); }
