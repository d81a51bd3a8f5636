#pragma once

#include "kernels/cpu/products_many.h"

// Matrix products over live row-major weights, y = x W^T. Included inside the namespace of an instruction set, after its Vec.
//
// Every output is a dot product along K in one order, whatever the number of rows of x: lane i sums the products of
// k = i, i + N, i + 2 N, ... in turn, and the lanes are added by halves, quarters, ... (sums in vec_*.h). Tiles of MR rows
// of x by NR rows of W keep those lanes in registers; long rows are cut in blocks of K between which the lanes are parked
// in memory, which changes no bit.
//
// Many rows of x have tiles of their own (products_many.h). Few are bound by memory, and the prefetchers follow long streams
// that lie far apart best. So the NR rows of W of a tile are then not neighbours: each is in a part of its own, and from tile
// to tile every part is read on.

template <class T>
struct Product {
    using D = Dot<T>;
    using X = typename D::X;

    // x as the products want it: rounded to X and filled up with zeros, in blocks of kTileRows rows (the last may have
    // fewer). A block is [K / D::K][its rows][D::K], so that a tile reads it from end to end. Many rows: ManyRows::pack_row.
    static int64_t operand_row(int64_t columns) { return round_up(columns, D::K); }
    static int64_t operand_bytes(int64_t rows, int64_t columns) {
        if (are_many(rows)) return ManyRows<T>::operand_bytes(rows, columns);
        return rows * operand_row(columns) * static_cast<int64_t>(sizeof(X));
    }

    // Rows that are packed at a time: whole tiles.
    static constexpr int64_t kPackRows = 12;
    static_assert(kPackRows % kTileRows == 0 && kPackRows % kManyTileRows == 0);

    // Rounds `values` [m, n], `ld` apart, to columns [first, first + n) of rows [row, row + m) of an operand of `rows` rows.
    static void pack(void* operand, int64_t rows, int64_t row, int64_t m, int64_t columns, int64_t first,
                     const float* values, int64_t ld, int64_t n) {
        const auto pack_row = are_many(rows) ? ManyRows<T>::pack_row : pack_few;
        for (int64_t i = 0; i < m; ++i) pack_row(operand, rows, row + i, columns, first, values + i * ld, n);
    }

    // Rows of W in a unit of work: enough units for a balanced team, each long enough to be worth taking. Few rows of x, which
    // wait for the memory, take longer streams of W.
    static int64_t unit_rows(int64_t rows_of_x, int64_t rows_of_w, int team_size) {
        static_assert(kFewTiles * kTileRows * kLongUnit * 16 <= kMostRows * kMostUnitRows);
        if (are_many(rows_of_x)) return ManyRows<T>::unit_rows(rows_of_w, team_size);
        const bool few = rows_of_x <= kFewTiles * kTileRows;
        const int64_t tile = rows_of_x < kTileRows ? 16 : 2 * kTileWidths[kTileRows - 1];
        const int64_t balanced = rows_of_w / ((few ? 4 : 8) * team_size) / tile * tile;
        return balanced < tile ? tile : smaller(balanced, (few ? kLongUnit : 4) * tile);
    }

    // Rows of x in a unit of work, of `rows`.
    static int64_t row_block(int64_t rows, int64_t /*columns*/) {
        const int64_t blocks = larger(1, (rows + kMostRows - 1) / kMostRows);
        return round_up((rows + blocks - 1) / blocks, kManyTileRows);
    }

    // c [m, ldc], columns 0 to w.num: rows [row, row + m) of the operand times rows of W. `next`: those that this thread is
    // likely to multiply after them.
    static void run(const MatrixRows& w, const MatrixRows& next, const void* operand, int64_t rows, int64_t row,
                    int64_t m, float* c, int64_t ldc, void* scratch) {
        if (are_many(rows)) {
            return ManyRows<T>::run(w, next, operand, rows, row, m, c, ldc, static_cast<Vec*>(scratch));
        }
        const int64_t n = w.num, length = w.matrix->columns;
        const X* x = static_cast<const X*>(operand) + row * operand_row(length);
        const T* weight = w.template at<T>(0);
        const Call call{x, operand_row(length), m, w.matrix->stride, length, c, ldc, static_cast<Vec*>(scratch), next};
        int64_t done = by_rows<kTileRows>(call, weight, n);
        if constexpr (kTileWidths[0] > 8) done = m == 1 ? columns<8>(call, weight, done, n) : done;
        if constexpr (kTileWidths[kTileRows - 1] >= 4) done = columns<4>(call, weight, done, n);
        done = columns<2>(call, weight, done, n);
        columns<1>(call, weight, done, n);
    }

    // Of scratch, for products of so many columns.
    static int64_t scratch_bytes(int64_t columns) {
        return larger(kManyRows * 8 * static_cast<int64_t>(sizeof(Vec)), ManyRows<T>::turned_bytes(columns));
    }

private:
    static void pack_few(void* operand, int64_t rows, int64_t row, int64_t columns, int64_t first, const float* values,
                         int64_t n) {
        const int64_t block = row / kTileRows * kTileRows, width = smaller(kTileRows, rows - block);
        X* to = static_cast<X*>(operand) + block * operand_row(columns) + (row - block) * D::K;
        for (int64_t done = 0; done < n;) {
            const int64_t k = first + done, count = smaller(D::K - k % D::K, n - done);
            X rounded[D::K];
            D::round_x(values + done, count, rounded);
            const int64_t filled = k + count == columns ? D::K - k % D::K : count;
            __builtin_memcpy(to + k / D::K * width * D::K + k % D::K, rounded, filled * sizeof(X));
            done += count;
        }
    }

    struct Call {
        const X* x;
        int64_t ldx, m, ldw, columns;
        float* c;
        int64_t ldc;
        Vec* parked;
        MatrixRows next;
    };

    // Up to so many tiles wait for the memory; more of them fetch the next rows of W bit by bit.
    static constexpr int64_t kFewTiles = 8;

    static constexpr int64_t kLongUnit = 64;  // tiles of W in a unit, at most

    // K of a block, of many tiles: MR rows of x and NR of W of this length fit the first-level cache. Of few tiles: short,
    // so that the memory does not rest while the other tiles of a block find W in the cache.
    static constexpr int64_t kBlock = 1024, kShortBlock = 256;

    // How far ahead few tiles fetch W: 1 KiB for a single row, 2 KiB for more.
    static constexpr int64_t ahead_columns(int MR) { return (MR == 1 ? 1024 : 2048) / static_cast<int64_t>(sizeof(T)); }

    // Where the NR rows of W of a tile lie and their sums go: row j is j * apart rows after the first.
    template <int NR>
    struct Group {
        const T* w;
        int64_t ldw;  // elements from one row of the tile to the next
        float* c;
        int64_t apart;
    };

    // With the widest tiles that m rows allow.
    template <int MR>
    static int64_t by_rows(const Call& call, const T* w, int64_t n) {
        if constexpr (MR > 1) {
            if (call.m < MR) return by_rows<MR - 1>(call, w, n);
        }
        return columns<kTileWidths[MR - 1]>(call, w, 0, n);
    }

    // Most rows of a tile with NR rows of W.
    static constexpr int most_rows(int NR) {
        int rows = kTileRows;
        while (kTileWidths[rows - 1] < NR) --rows;
        return rows;
    }

    // As many whole groups of NR rows of W as there are in [done, n); returns the first that is left.
    template <int NR>
    static int64_t columns(const Call& call, const T* w, int64_t done, int64_t n) {
        constexpr int MR = most_rows(NR);
        const int64_t tiles = (call.m + MR - 1) / MR, groups = (n - done) / NR;
        const bool few = tiles <= kFewTiles;
        const int64_t block = tiles == 1 ? call.columns : few ? kShortBlock : kBlock;
        const int64_t apart = few ? groups : 1, step = few ? 1 : NR;
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t first = done + group * step;
            const Group<NR> rows_of_w{w + first * call.ldw, apart * call.ldw, call.c + first, apart};
            for (int64_t k = 0; k < call.columns; k += block) {
                const int64_t length = smaller(block, call.columns - k);
                const bool ends = group + 1 == groups;
                const T* after = ends ? call.next.template at<T>(0) : rows_of_w.w + NR * call.ldw;
                Ahead ahead(after + k, ends ? call.next.matrix->stride : call.ldw, few ? 0 : NR, length);
                for (int64_t m = 0; m < call.m; m += MR) {
                    if (few) {
                        rows<MR, true>(call, rows_of_w, k, length, m, ahead);
                    } else {
                        rows<MR, false>(call, rows_of_w, k, length, m, ahead);
                    }
                }
            }
        }
        return done + groups * NR;
    }

    // A tile of MR rows of x, or of fewer at the end.
    template <int MR, bool few, int NR>
    [[gnu::noinline]] static void rows(const Call& call, const Group<NR>& group, int64_t k, int64_t length, int64_t m,
                                       Ahead& ahead) {
        if constexpr (MR > 1) {
            if (call.m - m < MR) return rows<MR - 1, few>(call, group, k, length, m, ahead);
        }
        const bool begins = k == 0, ends = k + length == call.columns;
        const X* x = call.x + m * call.ldx + k * MR;
        Vec* parked = call.parked + m * NR;
        float* c = group.c + m * call.ldc;
        // One tile fetches W of all rows, two that of half of them each.
        constexpr int half = (NR + 1) / 2;
        if (!few) {
            tile<MR, NR, 0, true>(x, group, k, length, begins, ends, 0, parked, c, call.ldc, ahead);
        } else if (m >= 2 * MR) {
            tile<MR, NR, 0, false>(x, group, k, length, begins, ends, 0, parked, c, call.ldc, ahead);
        } else if (call.m <= MR) {
            tile<MR, NR, NR, false>(x, group, k, length, begins, ends, 0, parked, c, call.ldc, ahead);
        } else {
            const int64_t first = m > 0 ? NR - half : 0;
            tile<MR, NR, half, false>(x, group, k, length, begins, ends, first, parked, c, call.ldc, ahead);
        }
    }

    // Fetches what comes some columns later of `near` rows of W, from row `first_near` on (of the last columns, what follows
    // the row), or lines of the next tiles' rows.
    template <int MR, int NR, int near, bool asks_ahead>
    [[gnu::always_inline]] static void tile(const X* x, const Group<NR>& group, int64_t first, int64_t length,
                                            bool begins, bool ends, int64_t first_near, Vec* parked, float* c,
                                            int64_t ldc, Ahead& ahead) {
        const T *w = group.w + first, *next = w + first_near * group.ldw + ahead_columns(MR);
        const int64_t ldw = group.ldw;
        Vec lanes[MR * NR];
        DEMIURGIC_UNROLL for (int i = 0; i < MR * NR; ++i) lanes[i] = begins ? zero() : parked[i];
        int64_t k = 0;
        for (; k + 2 * D::K <= length; k += 2 * D::K) {
            if (asks_ahead) ahead.line();
            step<MR, NR, near>(lanes, x + k * MR, w + k, ldw, next + k);
            step<MR, NR, near>(lanes, x + (k + D::K) * MR, w + k + D::K, ldw, next + k + D::K);
        }
        if (k + D::K <= length) {
            step<MR, NR, near>(lanes, x + k * MR, w + k, ldw, next + k);
            k += D::K;
        }
        if (k < length) last_step<MR, NR>(lanes, x + k * MR, w + k, ldw, length - k);
        if (!ends) {
            DEMIURGIC_UNROLL for (int i = 0; i < MR * NR; ++i) parked[i] = lanes[i];
            return;
        }
        float out[MR * NR];
        add_lanes<MR * NR>(lanes, out);
        if (group.apart == 1) {
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i)
                __builtin_memcpy(c + i * ldc, out + i * NR, NR * sizeof(float));
        } else {
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j)
                c[i * ldc + j * group.apart] = out[i * NR + j];
        }
    }

    // D::K columns of the tile.
    template <int MR, int NR, int near>
    [[gnu::always_inline]] static void step(Vec* lanes, const X* x, const T* w, int64_t ldw, const T* next) {
        typename D::Operand xs[MR];
        DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) xs[i] = D::load_x(x + i * D::K);
        DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j) {
            const typename D::Operand ws = D::load_w(w + j * ldw);
            if (j < near) __builtin_prefetch(next + j * ldw, 0, 2);
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) lanes[i * NR + j] = D::dot(xs[i], ws, lanes[i * NR + j]);
        }
    }

    // The last n columns, fewer than D::K.
    template <int MR, int NR>
    [[gnu::always_inline]] static void last_step(Vec* lanes, const X* x, const T* w, int64_t ldw, int64_t n) {
        DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j) {
            const typename D::Operand ws = D::load_w_first(w + j * ldw, n);
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) {
                lanes[i * NR + j] = D::dot(D::load_x(x + i * D::K), ws, lanes[i * NR + j]);
            }
        }
    }

    template <int n>
    static void add_lanes(const Vec* lanes, float* out) {
        if constexpr (n > 16) {
            sums<16>(lanes, out);
            add_lanes<n - 16>(lanes + 16, out + 16);
        } else {
            sums<n>(lanes, out);
        }
    }
};
