#pragma once

#include "kernels/cpu/unroll.h"

// How weights of a type are multiplied, and what the products of few and of many rows share. Included inside the namespace
// of an instruction set, after its Vec.

// The first n lanes, n from 1 to N.
template <class T>
inline Vec load_some(const T* p, int64_t n) {
    return n == Vec::N ? load(p) : load_first(p, n);
}

// Keeps what was loaded in a register: g++ would rather load it again for each use.
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Vec& x) {
#ifdef __AVX2__
    __asm__("" : "+v"(x.v));
#endif
}

// x is rounded to X; `dot` adds the products of K elements to the lanes, lane i those of the i-th 32 bits of x and of W.
template <class T>
struct Dot {
    using X = float;
    using Operand = Vec;
    static constexpr int K = Vec::N;
    static Operand load_x(const X* p) { return load(p); }
    static Operand load_w(const T* p) { return load(p); }
    static Operand load_w_first(const T* p, int64_t n) { return load_first(p, n); }
    static Vec dot(Operand x, Operand w, Vec lanes) { return fma(x, w, lanes); }

    // n of K values, and zeros behind them.
    static void round_x(const float* p, int64_t n, X* to) { store(to, load_some(p, n)); }
    static void round_lanes(Vec x, X* to) { store(to, x); }  // N values
    // What one lane takes, for all lanes.
    static Operand spread_x(uint32_t bits) { return broadcast(__builtin_bit_cast(float, bits)); }
};

#ifdef DEMIURGIC_BF16_DOT
[[gnu::always_inline]] inline void keep_in_register(__m512i& x) { __asm__("" : "+v"(x)); }

// vdpbf16ps: each lane adds two neighbouring products.
template <>
struct Dot<BFloat16> {
    using X = BFloat16;
    using Operand = __m512i;
    static constexpr int K = 32;
    static Operand load_x(const X* p) { return _mm512_loadu_si512(p); }
    static Operand load_w(const BFloat16* p) { return _mm512_loadu_si512(p); }
    static Operand load_w_first(const BFloat16* p, int64_t n) {
        return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
    }
    static Vec dot(Operand x, Operand w, Vec lanes) { return {_mm512_dpbf16_ps(lanes.v, (__m512bh)x, (__m512bh)w)}; }

    // Takes subnormal numbers for zero, as vdpbf16ps does.
    static void round_x(const float* p, int64_t n, X* to) {
        const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << n) - 1);
        const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
        const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), p + 16);
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    static void round_lanes(Vec x, X* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x.v));
    }
    static Operand spread_x(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
};
#endif

// Most rows of x that a unit of work takes, and most rows of W beside so many.
constexpr int64_t kMostRows = 384, kMostUnitRows = 96;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows [first, first + num) of W.
struct MatrixRows {
    const Matrix* matrix;
    int64_t first, num;

    template <class T>
    const T* at(int64_t row) const {
        return static_cast<const T*>(matrix->weight) + (first + row) * matrix->stride;
    }
    MatrixRows from(int64_t row, int64_t most) const { return {matrix, first + row, smaller(num - row, most)}; }
};

// How the rows of W are cut into units of work: a multiple of `step` rows each, but for the last, and at most `most`.
struct UnitRows {
    int64_t most, step;
};

// n floats to another type.
template <class X>
inline void convert(const float* from, X* to, int64_t n) {
    int64_t i = 0;
    for (; i + Vec::N <= n; i += Vec::N) store(to + i, load(from + i));
    if (i < n) {
        X padded[Vec::N];
        store(padded, load_first(from + i, n - i));
        for (int64_t j = i; j < n; ++j) to[j] = padded[j - i];
    }
}

inline void store_some(float* p, Vec x, int64_t n) {
    if (n == Vec::N) return store(p, x);
    float lanes[Vec::N];
    store(lanes, x);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// Asks for rows of W line by line, so that they come while others are multiplied. Between the steps of a product: the
// processor drops much of what is asked for at once.
class Ahead {
public:
    // w [num, length], `stride` elements from row to row
    template <class T>
    Ahead(const T* w, int64_t stride, int64_t num, int64_t length)
        : next_(reinterpret_cast<const char*>(w)),
          stride_(stride * static_cast<int64_t>(sizeof(T))),
          lines_per_row_((length * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine),
          lines_in_row_(lines_per_row_),
          lines_(num * lines_per_row_) {}

    [[gnu::always_inline]] void line() {
        if (lines_ == 0) return;
        --lines_;
        __builtin_prefetch(next_, 0, 2);
        next_ += kLine;
        if (--lines_in_row_ > 0) return;
        lines_in_row_ = lines_per_row_;
        next_ += stride_ - lines_per_row_ * kLine;
    }

private:
    static constexpr int64_t kLine = 64;

    const char* next_;
    int64_t stride_;                                // bytes
    int64_t lines_per_row_, lines_in_row_, lines_;  // of the last two: what is left
};
