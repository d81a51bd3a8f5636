#pragma once

#include "kernels/cpu/dot.h"

// Products of many rows of x, which wait for arithmetic. Included inside the namespace of an instruction set, after its Vec.
//
// W is turned, some rows at a time, so that a vector holds the same lane of the sums of N rows of W, and the lanes are added
// up without a shuffle. Turned W is [pair of lanes][step][2][row of W] and stays in the second-level cache while x passes;
// the lanes are in the order in which halves, quarters, ... add them. A tile takes one pair after the other through all
// steps, with its sums in registers, and adds each to those that wait for it. So an output's sum is, to the bit, the one
// that few rows of x get (products.h).

// Beyond so many rows W is turned; fewer do not earn back what it costs.
constexpr int64_t kManyRows = 96;
inline bool are_many(int64_t rows) { return rows > kManyRows; }

// What a lane takes of x's row at a step.
using LaneBits = uint32_t;

// Where lane i is at step 0, by its bits in reverse, when pairs of lanes and the lanes of a pair are so far apart.
constexpr int64_t offset_of_lane(int64_t i, int64_t pair_stride, int64_t lane_stride) {
    int64_t place = 0;
    for (int64_t bit = 1; bit < Vec::N; bit *= 2) place = 2 * place + (i / bit) % 2;
    return place / 2 * pair_stride + place % 2 * lane_stride;
}

template <class T>
struct ManyRows {
    using D = Dot<T>;
    using Operand = typename D::Operand;

    // Rows of x in a tile: so many, or at the end as many thirds as are needed, filled up with zeros.
    static constexpr int kRows = kManyTileRows, kThird = kRows / 3;
    static constexpr int kVecs = 2;                    // of rows of W in a tile
    static constexpr int64_t kGroup = kVecs * Vec::N;  // rows of W turned at a time
    static constexpr int kLevels = __builtin_ctz(Vec::N);
    static_assert(kVecs == 2);          // run() has tiles of two vectors and of one
    static_assert(kGroup % D::K == 0);  // so units of W begin where pack can

    static int64_t steps_of(int64_t columns) { return (columns + D::K - 1) / D::K; }
    static int64_t operand_bytes(int64_t rows, int64_t columns) {
        return round_up(rows, kThird) * steps_of(columns) * Vec::N * static_cast<int64_t>(sizeof(LaneBits));
    }
    static int64_t turned_bytes(int64_t columns) {
        return Vec::N / 2 * pair_stride(steps_of(columns), kVecs) * static_cast<int64_t>(sizeof(Vec));
    }

    static UnitRows unit_rows(int64_t rows_of_w, int team_size) {
        if (rows_of_w < team_size * kGroup) return {D::K, D::K};
        const int64_t balanced = larger(kGroup, rows_of_w / (8 * team_size) / kGroup * kGroup);
        const int64_t most = smaller(balanced, kMostUnitRows / kGroup * kGroup);
        return {most, most};
    }

    // Product::pack, from a multiple of D::K columns on. The operand is tiles of [pair of lanes][step][2][row of the tile];
    // the last row fills up its tile with zeros.
    static void pack(void* operand, int64_t rows, int64_t row, int64_t m, int64_t columns, int64_t first,
                     const float* values, int64_t ld, int64_t n) {
        int64_t i = 0;
        while (i < m) {
            if (kTurnsTiles && (row + i) % kRows == 0 && m - i >= kRows) {
                pack_tile(operand, row + i, columns, first, values + i * ld, ld, n);
                i += kRows;
            } else {
                pack_row(operand, rows, row + i, columns, first, values + i * ld, n);
                ++i;
            }
        }
    }

    // See Product::run. `turned`: scratch.
    static void run(const MatrixRows& w, const MatrixRows& next, const void* operand, int64_t rows, int64_t row,
                    int64_t m, float* c, int64_t ldc, Vec* turned) {
        const int64_t columns = w.matrix->columns, stride = w.matrix->stride, steps = steps_of(columns);
        const LaneBits* x = static_cast<const LaneBits*>(operand);
        for (int64_t j = 0; j < w.num; j += kGroup) {
            const int64_t count = smaller(kGroup, w.num - j), vecs = (count + Vec::N - 1) / Vec::N;
            for (int64_t v = 0; v < vecs; ++v) {
                const T* weight = w.template at<T>(j + v * Vec::N);
                turn_rows(weight, stride, smaller(Vec::N, count - v * Vec::N), columns, vecs, turned + v);
            }
            const MatrixRows after = j + kGroup < w.num ? w.from(j + kGroup, kGroup) : next.from(0, kGroup);
            Ahead ahead(after.template at<T>(0), after.matrix->stride, after.num, after.matrix->columns);
            for (int64_t i = 0; i < m; i += kRows) {
                const Tile tile{x + (row + i) * steps * Vec::N, turned, steps, c + i * ldc + j, ldc,
                                smaller(kRows, m - i),          count};
                const int64_t thirds = tile_rows(rows - row - i) / kThird;
                if (vecs == kVecs) {
                    tile_of<kVecs>(tile, thirds, ahead);
                } else {
                    tile_of<1>(tile, thirds, ahead);
                }
            }
        }
    }

private:
    struct Tile {
        const LaneBits* x;
        const Vec* w;
        int64_t steps;
        float* c;
        int64_t ldc, m, n;  // of c
    };

    // Vectors of turned W of a pair of lanes: one too many, since powers of two would meet in the first-level cache.
    static constexpr int64_t pair_stride(int64_t steps, int64_t vecs) { return 2 * steps * vecs + 1; }

    static int64_t tile_rows(int64_t left) { return smaller(kRows, round_up(left, kThird)); }

    // One row of what pack writes.
    static void pack_row(void* operand, int64_t rows, int64_t row, int64_t columns, int64_t first, const float* values,
                         int64_t n) {
        const int64_t tile = row / kRows * kRows, steps = steps_of(columns), step = first / D::K;
        const int64_t thirds = tile_rows(rows - tile) / kThird,
                      last = row + 1 == rows ? thirds * kThird : row - tile + 1;
        LaneBits* to = static_cast<LaneBits*>(operand) + tile * steps * Vec::N + 2 * step * thirds * kThird;
        const auto put = thirds == 3 ? put_row<kRows> : thirds == 2 ? put_row<2 * kThird> : put_row<kThird>;
        put(to + row - tile, steps, values, n);
        for (int64_t j = row - tile + 1; j < last; ++j) put(to + j, steps, nullptr, n);
    }

    // `values` (nullptr: zeros) to one row of a tile of `width`.
    template <int width>
    static void put_row(LaneBits* to, int64_t steps, const float* values, int64_t n) {
        for (int64_t k = 0; k < n; k += D::K, to += 2 * width) {
            typename D::X rounded[D::K] = {};
            if (values) D::round_x(values + k, smaller(D::K, n - k), rounded);
            LaneBits lanes[Vec::N];
            static_assert(sizeof rounded == sizeof lanes);
            __builtin_memcpy(lanes, rounded, sizeof lanes);
            __asm__("" : "+m"(lanes));  // from memory: taking a vector apart costs more
            DEMIURGIC_UNROLL for (int i = 0; i < Vec::N; ++i) to[offset_of_lane(i, 2 * steps * width, width)] =
                lanes[i];
        }
    }

    // Where a vector holds all lanes of a row, a whole tile is turned at once (vec_avx512.h).
    static constexpr bool kTurnsTiles = Vec::N == 16 && kRows == 6;

    // A whole tile of what pack writes.
    static void pack_tile(void* operand, int64_t row, int64_t columns, int64_t first, const float* values, int64_t ld,
                          int64_t n) {
        if constexpr (kTurnsTiles) {
            const int64_t steps = steps_of(columns);
            float* to = static_cast<float*>(operand) + row * steps * Vec::N + 2 * (first / D::K) * kRows;
            for (int64_t k = 0; k < n; k += D::K, to += 2 * kRows) {
                Operand x[kRows];
                for (int i = 0; i < kRows; ++i) {
                    typename D::X rounded[D::K] = {};
                    D::round_x(values + i * ld + k, smaller(D::K, n - k), rounded);
                    x[i] = D::load_x(rounded);
                }
                turn_six(x, [&](int lane) { return to + offset_of_lane(lane, 2 * steps * kRows, kRows); });
            }
        }
    }

    // n rows of W, and zeros, to one vector of each [pair of lanes][step][2][vecs].
    static void turn_rows(const T* w, int64_t ldw, int64_t n, int64_t columns, int64_t vecs, Vec* turned) {
        const int64_t steps = steps_of(columns);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t count = smaller(D::K, columns - step * D::K);
            const T* block = w + step * D::K;
            Vec lanes[Vec::N];
            if (sizeof(T) * D::K == sizeof(Vec) && count == D::K && n == Vec::N) {
                load_turned(reinterpret_cast<const char*>(block), ldw * static_cast<int64_t>(sizeof(T)), lanes);
            } else {
                Operand rows[Vec::N];
                for (int i = 0; i < Vec::N; ++i) rows[i] = i < n ? load_w(block + i * ldw, count) : Operand{};
                load_turned(reinterpret_cast<const char*>(rows), sizeof(Vec), lanes);
            }
            Vec* at = turned + 2 * step * vecs;
            DEMIURGIC_UNROLL for (int i = 0; i < Vec::N; ++i) {
                at[offset_of_lane(i, pair_stride(steps, vecs), vecs)] = lanes[i];
            }
        }
    }

    static Operand load_w(const T* p, int64_t count) {
        return count == D::K ? D::load_w(p) : D::load_w_first(p, count);
    }

    template <int NV>
    static void tile_of(const Tile& tile, int64_t thirds, Ahead& ahead) {
        if (thirds == 3) return multiply_tile<kRows, NV>(tile, ahead);
        if (thirds == 2) return multiply_tile<2 * kThird, NV>(tile, ahead);
        multiply_tile<kThird, NV>(tile, ahead);
    }

    template <int MR, int NV>
    [[gnu::noinline]] static void multiply_tile(const Tile& tile, Ahead& asked) {
        constexpr int num = MR * NV;
        Vec waiting[kLevels][num];  // at [i]: the sum of 2^(i + 1) lanes
        Ahead ahead = asked;        // in registers
        // Unrolled: steps may be few, and then a branch between two pairs that is guessed wrong costs as much as a step.
        DEMIURGIC_UNROLL for (unsigned pair = 0; pair < Vec::N / 2; ++pair) {
            Vec sums[2 * num];
            DEMIURGIC_UNROLL for (int i = 0; i < 2 * num; ++i) sums[i] = zero();
            const LaneBits* x = tile.x + pair * tile.steps * 2 * MR;
            const Vec* w = tile.w + pair * pair_stride(tile.steps, NV);
            for (int64_t step = 0; step < tile.steps; ++step, x += 2 * MR, w += 2 * NV) {
                if (step % 4 == 0) ahead.line();
                add_products<MR, NV>(x, w, sums);
                add_products<MR, NV>(x + MR, w + NV, sums + num);
            }
            DEMIURGIC_UNROLL for (int i = 0; i < num; ++i) sums[i] = sums[i] + sums[num + i];
            int level = 0;
            for (; pair >> level & 1; ++level) {
                DEMIURGIC_UNROLL for (int i = 0; i < num; ++i) sums[i] = waiting[level][i] + sums[i];
            }
            DEMIURGIC_UNROLL for (int i = 0; i < num; ++i) waiting[level][i] = sums[i];
        }
        asked = ahead;
        for (int64_t i = 0; i < tile.m; ++i) {
            DEMIURGIC_UNROLL for (int v = 0; v < NV; ++v) {
                const int64_t left = tile.n - v * Vec::N;
                store_some(tile.c + i * tile.ldc + v * Vec::N, waiting[kLevels - 1][i * NV + v], smaller(Vec::N, left));
            }
        }
    }

    // One lane's products of a step.
    template <int MR, int NV>
    [[gnu::always_inline]] static void add_products(const LaneBits* x, const Vec* w, Vec* sums) {
        DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) {
            const Operand xs = D::spread_x(x[i]);
            DEMIURGIC_UNROLL for (int v = 0; v < NV; ++v) {
                sums[i * NV + v] = D::dot(xs, __builtin_bit_cast(Operand, w[v]), sums[i * NV + v]);
            }
        }
    }
};
