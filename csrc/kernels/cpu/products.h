#pragma once

#include "kernels/cpu/products_many.h"

// Matrix products over live row-major weights, y = x W^T. Included inside the namespace of an instruction set, after its Vec.
//
// Every output is a dot product along K in one order, whatever the number of rows of x: lane i sums the products of
// k = i, i + N, i + 2 N, ... in turn, and the lanes are added by halves, quarters, ... (sums in vec_*.h). Tiles of MR rows
// of x by NR rows of W keep those lanes in registers. Up to kOneTileRows rows of x are one tile; more are tiles of kTileRows,
// and long rows are cut in blocks of K between which the lanes are parked in memory, which changes no bit.
//
// Many rows of x have tiles of their own (products_many.h). Few are bound by memory, and the prefetchers follow long streams
// that lie far apart best. So the NR rows of W of a tile are then not neighbours: each is in a part of its own, and from tile
// to tile every part is read on.

constexpr int64_t kOneTileRows = sizeof kTileWidths / sizeof *kTileWidths;

inline int64_t tile_height(int64_t rows_of_x) { return rows_of_x <= kOneTileRows ? rows_of_x : kTileRows; }

template <class T>
struct Product {
    using D = Dot<T>;
    using X = typename D::X;

    // x as the products want it: rounded to X and filled up with zeros, in blocks of tile_height rows (the last may have
    // fewer). A block is [K / D::K][its rows][D::K], so that a tile reads it from end to end. Many rows: ManyRows::pack.
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
        if (are_many(rows)) return ManyRows<T>::pack(operand, rows, row, m, columns, first, values, ld, n);
        for (int64_t i = 0; i < m; ++i) pack_few(operand, rows, row + i, columns, first, values + i * ld, n);
    }

    // Rows of W in a unit of work: enough units for a balanced team, each long enough to be worth taking. Few rows of x, which
    // wait for the memory, take longer streams of W: four units for each member, or fewer where streams would be short.
    static UnitRows unit_rows(int64_t rows_of_x, int64_t rows_of_w, int64_t columns, int team_size) {
        static_assert(kFewTiles * kTileRows * kLongUnit * 16 <= kMostRows * kMostUnitRows);
        if (are_many(rows_of_x)) return ManyRows<T>::unit_rows(rows_of_w, team_size);
        const int64_t tile = rows_of_x < kTileRows ? 16 : 2 * kTileWidths[tile_height(rows_of_x) - 1];
        if (rows_of_x > kFewTiles * kTileRows) {
            const int64_t most = smaller(larger(1, rows_of_w / (8 * team_size) / tile), 4) * tile;
            return {most, most};
        }
        const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
        const int64_t streams = kTileWidths[tile_height(rows_of_x) - 1];
        const int64_t length = rows_of_w / team_size / streams * row_bytes;  // if a member's share were one unit
        const int64_t units = smaller(4, larger(1, length / kShortStream)) * team_size;
        return {smaller(round_up((rows_of_w + units - 1) / units, tile), kLongUnit * tile), tile};
    }

    // Rows of x in a unit of work, of `rows`.
    static int64_t row_block(int64_t rows, int64_t /*columns*/) {
        const int64_t blocks = larger(1, (rows + kMostRows - 1) / kMostRows);
        return round_up((rows + blocks - 1) / blocks, kManyTileRows);
    }

    // c [m, ldc], columns 0 to w.num: rows [row, row + m) of the operand times rows of W. `next`: those that this thread is
    // likely to multiply after them. `in_cache`: W is likely to be in the last-level cache.
    static void run(const MatrixRows& w, const MatrixRows& next, const void* operand, int64_t rows, int64_t row,
                    int64_t m, float* c, int64_t ldc, void* scratch, bool in_cache) {
        if (are_many(rows)) {
            return ManyRows<T>::run(w, next, operand, rows, row, m, c, ldc, static_cast<Vec*>(scratch));
        }
        const int64_t n = w.num, length = w.matrix->columns;
        const X* x = static_cast<const X*>(operand) + row * operand_row(length);
        const T* weight = w.template at<T>(0);
        by_rows<kOneTileRows>(
            {x, operand_row(length), m, w.matrix->stride, length, c, ldc, static_cast<Vec*>(scratch), next, in_cache},
            weight, n);
    }

    // Of scratch, for products of so many columns.
    static int64_t scratch_bytes(int64_t columns) {
        return larger(kManyRows * 8 * static_cast<int64_t>(sizeof(Vec)), ManyRows<T>::turned_bytes(columns));
    }

private:
    static void pack_few(void* operand, int64_t rows, int64_t row, int64_t columns, int64_t first, const float* values,
                         int64_t n) {
        const int64_t height = tile_height(rows), block = row / height * height, width = smaller(height, rows - block);
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
        bool in_cache;
    };

    // Up to so many tiles wait for the memory; more of them fetch the next rows of W bit by bit.
    static constexpr int64_t kFewTiles = 8;

    static constexpr int64_t kLongUnit = 64;           // tiles of W in a unit, at most
    static constexpr int64_t kShortStream = 8 * 1024;  // bytes: the prefetchers follow shorter ones badly

    // K of a block, of many tiles: MR rows of x and NR of W of this length fit the first-level cache. Of few tiles: short,
    // so that the memory does not rest while the other tiles of a block find W in the cache.
    static constexpr int64_t kBlock = 1024, kShortBlock = 256;

    // How few tiles fetch W: from memory, 1 KiB ahead for a single row of x and 2 KiB for more; or, for a single row, from
    // the last-level cache, which is likely to hold W.
    enum class Fetch { from_memory, from_cache };

    static constexpr int64_t ahead_columns(int MR, Fetch fetch) {
        const int64_t bytes = fetch == Fetch::from_cache ? 512 : MR == 1 ? 1024 : 2048;
        return bytes / static_cast<int64_t>(sizeof(T));
    }

    // Which side of a tile stays in registers in a step, while the other comes row by row: x's, or W's where it has half as
    // many rows or fewer. Then no row is loaded twice, which pays where x lies in the first-level cache, beside lines of W.
    enum class Held { x, w };
    static constexpr int64_t kNearBytes = 24 * 1024;  // of a tile's x

    // What comes from memory waits in the second-level cache; the last-level cache is near enough to fetch it to the first.
    template <Fetch fetch>
    [[gnu::always_inline]] static void fetch_line(const T* p) {
        __builtin_prefetch(p, 0, fetch == Fetch::from_cache ? 3 : 2);
    }

    // Where the NR rows of W of a tile lie and their sums go: row j is j * apart rows after the first.
    template <int NR>
    struct Group {
        const T* w;
        int64_t ldw;  // elements from one row of the tile to the next
        float* c;
        int64_t apart;
    };

    // With tiles of MR rows of x.
    template <int MR>
    static void by_rows(const Call& call, const T* w, int64_t n) {
        if constexpr (MR > 1) {
            if (tile_height(call.m) < MR) return by_rows<MR - 1>(call, w, n);
        }
        constexpr int NR = kTileWidths[MR - 1];
        int64_t done = columns<MR, NR>(call, w, 0, n);
        if constexpr (NR > 8) done = columns<MR, 8>(call, w, done, n);
        if constexpr (NR > 4) done = columns<MR, 4>(call, w, done, n);
        if constexpr (NR > 2) done = columns<MR, 2>(call, w, done, n);
        if constexpr (NR > 1) columns<MR, 1>(call, w, done, n);
    }

    // As many whole groups of NR rows of W as there are in [done, n); returns the first that is left.
    template <int MR, int NR>
    static int64_t columns(const Call& call, const T* w, int64_t done, int64_t n) {
        const int64_t tiles = (call.m + MR - 1) / MR, groups = (n - done) / NR;
        const bool few = tiles <= kFewTiles;
        const int64_t apart = few ? groups : 1, step = few ? 1 : NR;
        for (int64_t i = 0; i < groups; ++i) {
            const int64_t first = done + i * step;
            const Group<NR> group{w + first * call.ldw, apart * call.ldw, call.c + first, apart};
            if (tiles == 1) {
                one_tile<MR>(call, group);
            } else if constexpr (MR == kTileRows) {
                const bool ends = i + 1 == groups;
                const T* after = ends ? call.next.template at<T>(0) : group.w + NR * call.ldw;
                more_tiles(call, group, few, after, ends ? call.next.matrix->stride : call.ldw);
            }
        }
        return done + groups * NR;
    }

    template <int MR, int NR>
    [[gnu::noinline]] static void one_tile(const Call& call, const Group<NR>& group) {
        const auto run = [&]<Fetch fetch, Held held>() {
            Ahead none(group.w, 0, 0, 0);
            tile<MR, NR, NR, false, fetch, held>(call.x, group, 0, call.columns, true, true, 0, nullptr, group.c,
                                                 call.ldc, none);
        };
        if constexpr (MR == 1) {
            if (call.in_cache) return run.template operator()<Fetch::from_cache, Held::x>();
        }
        if constexpr (MR >= 2 * NR) {
            const bool x_is_near = MR * call.ldx * static_cast<int64_t>(sizeof(X)) <= kNearBytes;
            if (x_is_near) return run.template operator()<Fetch::from_memory, Held::w>();
        }
        run.template operator()<Fetch::from_memory, Held::x>();
    }

    // `after`: the rows of W that come next, `stride` elements apart.
    template <int NR>
    static void more_tiles(const Call& call, const Group<NR>& group, bool few, const T* after, int64_t stride) {
        const int64_t block = few ? kShortBlock : kBlock;
        for (int64_t k = 0; k < call.columns; k += block) {
            const int64_t length = smaller(block, call.columns - k);
            Ahead ahead(after + k, stride, few ? 0 : NR, length);
            for (int64_t m = 0; m < call.m; m += kTileRows) {
                if (few) {
                    rows<kTileRows, true>(call, group, k, length, m, ahead);
                } else {
                    rows<kTileRows, false>(call, group, k, length, m, ahead);
                }
            }
        }
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
        // The first two tiles fetch W of half of the rows each.
        constexpr int half = (NR + 1) / 2;
        if (!few) {
            tile<MR, NR, 0, true>(x, group, k, length, begins, ends, 0, parked, c, call.ldc, ahead);
        } else if (m >= 2 * kTileRows) {
            tile<MR, NR, 0, false>(x, group, k, length, begins, ends, 0, parked, c, call.ldc, ahead);
        } else {
            const int64_t first = m > 0 ? NR - half : 0;
            tile<MR, NR, half, false>(x, group, k, length, begins, ends, first, parked, c, call.ldc, ahead);
        }
    }

    // Fetches what comes some columns later of `near` rows of W, from row `first_near` on (of the last columns, what follows
    // the row), or lines of the next tiles' rows.
    template <int MR, int NR, int near, bool asks_ahead, Fetch fetch = Fetch::from_memory, Held held = Held::x>
    [[gnu::always_inline]] static void tile(const X* x, const Group<NR>& group, int64_t first, int64_t length,
                                            bool begins, bool ends, int64_t first_near, Vec* parked, float* c,
                                            int64_t ldc, Ahead& ahead) {
        const T *w = group.w + first, *next = w + first_near * group.ldw + ahead_columns(MR, fetch);
        const int64_t ldw = group.ldw;
        Vec lanes[MR * NR];
        DEMIURGIC_UNROLL for (int i = 0; i < MR * NR; ++i) lanes[i] = begins ? zero() : parked[i];
        int64_t k = 0;
        for (; k + 2 * D::K <= length; k += 2 * D::K) {
            if (asks_ahead) ahead.line();
            step<MR, NR, near, fetch, held>(lanes, x + k * MR, w + k, ldw, next + k);
            step<MR, NR, near, fetch, held>(lanes, x + (k + D::K) * MR, w + k + D::K, ldw, next + k + D::K);
        }
        if (k + D::K <= length) {
            step<MR, NR, near, fetch, held>(lanes, x + k * MR, w + k, ldw, next + k);
            k += D::K;
        }
        if (k < length) last_step<MR, NR>(lanes, x + k * MR, w + k, ldw, length - k);
        if (!ends) {
            DEMIURGIC_UNROLL for (int i = 0; i < MR * NR; ++i) parked[i] = lanes[i];
            return;
        }
        float out[MR * NR];
        add_lanes<MR * NR>(lanes, out);
        const int64_t apart = group.apart;  // what is stored could be the group's, for all that g++ knows
        DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) {
            if (apart == 1) {
                __builtin_memcpy(c + i * ldc, out + i * NR, NR * sizeof(float));
                continue;
            }
            // Not as floats: a processor may store two integers at a time, but one float.
            DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j)
                __builtin_memcpy(c + i * ldc + j * apart, out + i * NR + j, sizeof(float));
        }
    }

    // D::K columns of the tile.
    template <int MR, int NR, int near, Fetch fetch, Held held>
    [[gnu::always_inline]] static void step(Vec* lanes, const X* x, const T* w, int64_t ldw, const T* next) {
        using Operand = typename D::Operand;
        const auto row_of_w = [&](int j) {
            if (j < near) fetch_line<fetch>(next + j * ldw);
            return D::load_w(w + j * ldw);
        };
        if constexpr (held == Held::x) {
            Operand xs[MR];
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) xs[i] = D::load_x(x + i * D::K);
            DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j) {
                const Operand ws = row_of_w(j);
                DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) lanes[i * NR + j] = D::dot(xs[i], ws, lanes[i * NR + j]);
            }
        } else {
            Operand ws[NR];
            DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j) ws[j] = row_of_w(j);
            DEMIURGIC_UNROLL for (int i = 0; i < MR; ++i) {
                Operand xs = D::load_x(x + i * D::K);
                keep_in_register(xs);
                DEMIURGIC_UNROLL for (int j = 0; j < NR; ++j) lanes[i * NR + j] = D::dot(xs, ws[j], lanes[i * NR + j]);
            }
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
