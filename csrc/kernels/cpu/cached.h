#pragma once

#include "kernels/cpu/rows.h"

// How keys are put into the cache, and how attention takes keys and values: as they lie there, blocks of keys
// [d, 16 positions] and of values [16 positions, d], or as a copy of such blocks. Included inside the namespace of an
// instruction set, after its Vec.

constexpr int64_t kBlock = 16;   // positions of a cache block
constexpr int64_t kChunk = 256;  // positions of a chunk

// y [d] to one position of a block of keys [d, kBlock].
template <class T>
inline void put_key(const float* y, int64_t d, T* keys) {
    for_lanes(d, [&](int64_t k, int64_t count) {
        T narrow[Vec::N];
        convert(y + k, narrow, count);
        for (int64_t i = 0; i < count; ++i) keys[(k + i) * kBlock] = narrow[i];
    });
}

// y [kBlock, d], rows `stride` apart, to a whole block of keys [d, kBlock]; d is a multiple of Vec::N.
template <class T>
inline void put_block_of_keys(const float* y, int64_t stride, int64_t d, T* keys) {
    const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < kBlock; i += Vec::N) {
        for (int64_t k = 0; k < d; k += Vec::N) {
            Vec lanes[Vec::N];
            load_turned(reinterpret_cast<const char*>(y + i * stride + k), row_bytes, lanes);
            for (int64_t j = 0; j < Vec::N; ++j) store(keys + (k + j) * kBlock + i, lanes[j]);
        }
    }
}

// Whether the next kBlock slots are those of a block, in order.
inline bool are_block(const int64_t* slots) {
    bool in_order = slots[0] % kBlock == 0;
    for (int64_t i = 1; i < kBlock; ++i) in_order &= slots[i] == slots[0] + i;
    return in_order;
}

// Of blocks of E. A lane takes kStep numbers at a time, as Dot adds them:
//   keys(p, k): of Vec::N positions, numbers k to k + kStep of their heads;
//   values(p, position, d, n): of n columns (at most Vec::N; the other lanes are 0), positions to position + kStep;
//   last_values: the same where only the first of these positions counts and the others may hold anything.
template <class E>
struct Cached {
    using D = Dot<E>;
    static constexpr int kStep = 1;
    static Vec keys(const E* p, int64_t k) { return load(p + k * kBlock); }
    static Vec values(const E* p, int64_t position, int64_t d, int64_t n) { return load_some(p + position * d, n); }
    static Vec last_values(const E* p, int64_t position, int64_t d, int64_t n) { return values(p, position, d, n); }

    // Worth its time where many queries share what is copied.
    using Copy = float;
    static void copy_keys(const E* block, int64_t d, Copy* to) { copy(block, d * kBlock, to); }
    static void copy_values(const E* block, int64_t d, Copy* to) { copy(block, d * kBlock, to); }

private:
    static void copy(const E* from, int64_t n, Copy* to) {
        for (int64_t i = 0; i < n; i += Vec::N) store(to + i, load(from + i));
    }
};

#ifdef DEMIURGIC_BF16_DOT
// Two numbers that one lane of vdpbf16ps takes.
struct Pair {
    BFloat16 both[2];
};

template <>
struct Cached<Pair> {
    using D = Dot<BFloat16>;
    static constexpr int kStep = 2;
    static __m512i keys(const Pair* p, int64_t k) { return _mm512_loadu_si512(p + k / 2 * kBlock); }
    static __m512i values(const Pair* p, int64_t position, int64_t d, int64_t n) {
        const Pair* row = p + position / 2 * d;
        return n == Vec::N ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi32(first(n), row);
    }
    static __m512i last_values(const Pair* p, int64_t position, int64_t d, int64_t n) {
        return _mm512_and_si512(values(p, position, d, n), _mm512_set1_epi32(0xffff));
    }
};

template <>
struct Cached<BFloat16> {
    using D = Dot<BFloat16>;
    static constexpr int kStep = 2;
    static_assert(Vec::N == kBlock);  // so two rows of keys are one vector

    static __m512i keys(const BFloat16* p, int64_t k) { return paired(_mm512_loadu_si512(p + k * kBlock)); }
    static __m512i values(const BFloat16* p, int64_t position, int64_t d, int64_t n) {
        return paired(row(p + position * d, n), row(p + (position + 1) * d, n));
    }
    static __m512i last_values(const BFloat16* p, int64_t position, int64_t d, int64_t n) {
        return paired(row(p + position * d, n), _mm256_setzero_si256());
    }

    using Copy = Pair;
    static void copy_keys(const BFloat16* block, int64_t d, Copy* to) {
        for (int64_t k = 0; k < d; k += 2) _mm512_storeu_si512(to + k / 2 * kBlock, keys(block, k));
    }
    static void copy_values(const BFloat16* block, int64_t d, Copy* to) {
        for (int64_t position = 0; position < kBlock; position += 2) {
            for (int64_t column = 0; column < d; column += Vec::N) {
                const int64_t n = smaller(Vec::N, d - column);
                _mm512_mask_storeu_epi32(to + position / 2 * d + column, first(n),
                                         values(block + column, position, d, n));
            }
        }
    }

private:
    static __m256i row(const BFloat16* p, int64_t n) {
        return n == Vec::N ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                           : _mm256_maskz_loadu_epi16(first(n), p);
    }
    static __m512i paired(__m256i low, __m256i high) {
        return paired(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
    }
    // Lane i: the i-th of the first 16 numbers and the i-th of the others.
    static __m512i paired(__m512i rows) {
        const __m512i order =
            _mm512_add_epi32(_mm512_set1_epi32(16 << 16),
                             _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                _mm512_set1_epi32(0x10001)));
        return _mm512_permutexvar_epi16(order, rows);
    }
};
#endif
