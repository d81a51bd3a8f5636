#pragma once

// Products of bfloat16 on AMX tiles, y = x W^T. Included inside the namespace of the AMX instruction set, after products.h.
//
// W is the left operand: its row-major rows are loaded as they lie, 16 rows x 32 columns a tile. x is the right one, packed
// in pairs of columns: [K / 2][rows of a block of 16][2]. A tile of sums is [16 rows of W, rows of the block]. Each sum
// takes its products 32 at a time in the order of K, as tdpbf16ps has it: the same for any number of rows.

#include "kernels/cpu/products.h"

// g++ 12 does not know that the tile instructions read memory: without this, what was just written might not be there yet.
inline void finish_writes() { asm volatile("" ::: "memory"); }

struct TileShape {
    uint8_t rows[8], bytes[8];

    bool operator==(const TileShape& other) const { return __builtin_memcmp(this, &other, sizeof *this) == 0; }
};

// The tiles of this thread while it computes a unit; released at its end, so that nobody else pays for saving them.
class Tiles {
public:
    ~Tiles() {
        if (configured_) _tile_release();
    }

    void shape(const TileShape& shape) {
        if (configured_ && shape == shape_) return;
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } config = {};
        config.palette = 1;
        for (int i = 0; i < 8; ++i) {
            config.rows[i] = shape.rows[i];
            config.bytes[i] = shape.bytes[i];
        }
        finish_writes();
        _tile_loadconfig(&config);
        shape_ = shape;
        configured_ = true;
    }

private:
    TileShape shape_;
    bool configured_ = false;
};

// Asks for part `index` of `parts` of rows of W [num, length], so that they come while others are multiplied.
inline void fetch(const BFloat16* w, int64_t ldw, int64_t num, int64_t length, int64_t index, int64_t parts) {
    constexpr int64_t line = 64 / sizeof(BFloat16);
    const int64_t per_row = (length + line - 1) / line, lines = num * per_row, begin = lines * index / parts;
    int64_t row = begin / per_row, column = begin % per_row;
    for (int64_t left = lines * (index + 1) / parts - begin; left > 0; --left) {
        __builtin_prefetch(w + row * ldw + column * line, 0, 2);
        if (++column == per_row) ++row, column = 0;
    }
}

template <>
struct Product<BFloat16> {
    static int64_t operand_row(int64_t columns) { return round_up(columns, 32); }
    static int64_t operand_bytes(int64_t rows, int64_t columns) { return rows * operand_row(columns) * 2; }

    static constexpr int64_t kPackRows = 16;

    static void pack(void* operand, int64_t rows, int64_t row, int64_t m, int64_t columns, int64_t first,
                     const float* values, int64_t ld, int64_t n) {
        for (int64_t done = 0; done < m;) {
            const int64_t begin = row + done, block = begin / 16 * 16, width = smaller(16, rows - block);
            const int64_t count = smaller(m - done, block + width - begin);
            uint32_t* to = static_cast<uint32_t*>(operand) + block * operand_row(columns) / 2 + (begin - block);
            const float* from = values + done * ld;
            int64_t k = 0;
            if (count == 16 && first % 2 == 0) {
                for (; k + 32 <= n; k += 32) pack_tile(from + k, ld, to + (first + k) / 2 * 16);
            }
            for (int64_t i = 0; i < count; ++i) {
                pack_pairs(from + i * ld + k, n - k, first + k, columns, width, to + i);
            }
            done += count;
        }
    }

    static UnitRows unit_rows(int64_t /*rows_of_x*/, int64_t rows_of_w, int64_t /*columns*/, int team_size) {
        const int64_t most = rows_of_w >= 64 * 4 * team_size ? 64 : 32;
        return {most, most};
    }

    static int64_t scratch_bytes(int64_t /*columns*/) { return 2 * 16 * 16 * 4 + 2 * 16 * 32 * 2; }

    // Most rows of x that stay in the second-level cache while W passes, a multiple of every block's.
    static int64_t row_block(int64_t /*rows*/, int64_t columns) {
        constexpr int64_t step = 64, cache = 1 << 20;
        return larger(2 * step, smaller(kMostRows, cache / operand_bytes(1, columns) / step * step));
    }

    static void run(const MatrixRows& w, const MatrixRows& /*next*/, const void* operand, int64_t rows, int64_t row,
                    int64_t m, float* c, int64_t ldc, void* scratch, bool /*in_cache*/) {
        finish_writes();
        Tiles tiles;
        const int64_t n = w.num, stride = w.matrix->stride, columns = w.matrix->columns;
        const Call call{
            w.at<BFloat16>(0),           stride, columns, static_cast<const BFloat16*>(operand), rows, c, ldc, row,
            static_cast<float*>(scratch)};
        if (m <= 16) {
            few_rows(call, tiles, row, m, n);
            return;
        }
        const int64_t num_pairs = (m + 31) / 32;
        for (int64_t j = 0; j < n; j += 32) {
            const int64_t count = smaller(32, n - j);
            for (int64_t pair = 0; pair < num_pairs; ++pair) {
                const int64_t begin = row + 32 * pair, left = m - 32 * pair;
                fetch(call.w + (j + 32) * stride, stride, 32, columns, pair, num_pairs);
                if (left > 16) {
                    pair_of_blocks(call, tiles, begin, smaller(16, left - 16), j, count);
                } else {
                    for (int64_t i = 0; i < count; i += 16) {
                        block(call, tiles, begin, left, {j + i, smaller(16, count - i), 1});
                    }
                }
            }
        }
    }

private:
    struct Call {
        const BFloat16* w;
        int64_t ldw, columns;
        const BFloat16* x;
        int64_t rows;  // of the operand
        float* c;
        int64_t ldc, first_row;
        float* scratch;

        const BFloat16* block_of(int64_t row) const { return x + row * operand_row(columns); }
        int64_t width(int64_t row) const { return smaller(16, rows - row); }
        float* out(int64_t row, int64_t n) const { return c + (row - first_row) * ldc + n; }
        BFloat16* tail() const { return reinterpret_cast<BFloat16*>(scratch + 2 * 16 * 16); }
    };

    // 32 columns of 16 rows to pairs of columns [16, 16 rows].
    static void pack_tile(const float* values, int64_t ld, uint32_t* to) {
        __m512i pairs[16];
        DEMIURGIC_UNROLL for (int i = 0; i < 16; ++i) {
            const __m512 low = _mm512_loadu_ps(values + i * ld), high = _mm512_loadu_ps(values + i * ld + 16);
            pairs[i] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        }
        float scratch[16 * 16];
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(scratch + 16 * i, pairs[i]);
        transpose(scratch, reinterpret_cast<float*>(to), 16);
    }

    // n columns of one row from column `first` on; fills up with zeros behind the last column.
    static void pack_pairs(const float* values, int64_t n, int64_t first, int64_t columns, int64_t width,
                           uint32_t* to) {
        if (n == 0) return;
        const int64_t padded = first + n == columns ? operand_row(columns) : first + n;
        int64_t k = first;
        for (; k % 2 == 0 && k + 32 <= first + n; k += 32) {
            const __m512 low = _mm512_loadu_ps(values + k - first), high = _mm512_loadu_ps(values + k - first + 16);
            uint32_t pairs[16];
            _mm512_storeu_si512(pairs, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            DEMIURGIC_UNROLL for (int i = 0; i < 16; ++i) to[(k / 2 + i) * width] = pairs[i];
        }
        // By the same instruction, which takes subnormals for zero, as the tiles do.
        for (; k < padded; ++k) {
            const Vec value = k < first + n ? broadcast(values[k - first]) : zero();
            const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(value.v);
            reinterpret_cast<uint16_t*>(to + k / 2 * width)[k % 2] =
                static_cast<uint16_t>(_mm256_extract_epi16(narrow, 0));
        }
    }

    // The columns of W behind the last whole 32, filled up with zeros: [rows, 32]
    static void copy_tail(const Call& call, const BFloat16* w, int64_t ldw, int64_t rows, BFloat16* to) {
        const int64_t begin = call.columns / 32 * 32;
        for (int64_t i = 0; i < rows; ++i) {
            const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << (call.columns - begin)) - 1);
            _mm512_storeu_si512(to + i * 32, _mm512_maskz_loadu_epi16(mask, w + i * ldw + begin));
        }
        finish_writes();
    }

    // n rows of W by few rows of x, which is bound by memory: the 16 rows of W of a tile are not neighbours, so that there
    // are 16 long streams, each read on from tile to tile.
    static void few_rows(const Call& call, Tiles& tiles, int64_t row, int64_t m, int64_t n) {
        const int64_t apart = n / 16;
        for (int64_t j = 0; j < apart; ++j) block(call, tiles, row, m, {j, 16, apart});
        if (n % 16 > 0) block(call, tiles, row, m, {16 * apart, n % 16, 1});
    }

    // The rows of W of a tile: first, first + apart, first + 2 apart, ...
    struct Group {
        int64_t first, num, apart;
    };

    // Rows of W by one block of x: sums in tile 0, W in 4, x in 6.
    static void block(const Call& call, Tiles& tiles, int64_t row, int64_t m, const Group& group) {
        const int64_t width = call.width(row);
        const uint8_t rw = static_cast<uint8_t>(group.num), bx = static_cast<uint8_t>(4 * width);
        tiles.shape({{rw, 0, 0, 0, rw, 0, 16, 0}, {bx, 0, 0, 0, 64, 0, bx, 0}});
        const BFloat16 *w = call.w + group.first * call.ldw, *x = call.block_of(row);
        const int64_t ldw = group.apart * call.ldw, ldx = width * 4;
        _tile_zero(0);
        int64_t k = 0;
        for (; k + 32 <= call.columns; k += 32) {
            _tile_loadd(6, x + k * width, ldx);
            _tile_loadd(4, w + k, ldw * 2);
            _tile_dpbf16ps(0, 4, 6);
        }
        if (k < call.columns) {
            _tile_loadd(6, x + k * width, ldx);
            copy_tail(call, w, ldw, group.num, call.tail());
            _tile_loadd(4, call.tail(), 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        give<0>(call, row, m, width, group);
    }

    // Up to 32 rows of W by two blocks of x, 16 rows and `second`: sums in tiles 0 to 3, W in 4 and 5, x in 6 and 7.
    static void pair_of_blocks(const Call& call, Tiles& tiles, int64_t row, int64_t second, int64_t n, int64_t count) {
        if (count < 32) {
            for (int64_t j = 0; j < count; j += 16) {
                block(call, tiles, row, 16, {n + j, smaller(16, count - j), 1});
                block(call, tiles, row + 16, second, {n + j, smaller(16, count - j), 1});
            }
            return;
        }
        const int64_t width = call.width(row + 16);
        const uint8_t bx = static_cast<uint8_t>(4 * width);
        tiles.shape({{16, 16, 16, 16, 16, 16, 16, 16}, {64, bx, 64, bx, 64, 64, 64, bx}});
        const BFloat16 *w0 = call.w + n * call.ldw, *w1 = w0 + 16 * call.ldw;
        const BFloat16 *x0 = call.block_of(row), *x1 = call.block_of(row + 16);
        const int64_t ldw = call.ldw * 2, ldx = width * 4;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        int64_t k = 0;
        for (; k + 32 <= call.columns; k += 32) {
            _tile_loadd(6, x0 + k * 16, 64);
            _tile_loadd(4, w0 + k, ldw);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, x1 + k * width, ldx);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, w1 + k, ldw);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        if (k < call.columns) {
            BFloat16 *tail0 = call.tail(), *tail1 = tail0 + 16 * 32;
            copy_tail(call, w0, call.ldw, 16, tail0);
            copy_tail(call, w1, call.ldw, 16, tail1);
            _tile_loadd(6, x0 + k * 16, 64);
            _tile_loadd(7, x1 + k * width, ldx);
            _tile_loadd(4, tail0, 64);
            _tile_loadd(5, tail1, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        const Group upper{n, 16, 1}, lower{n + 16, 16, 1};
        give<0>(call, row, 16, 16, upper);
        give<1>(call, row + 16, second, width, upper);
        give<2>(call, row, 16, 16, lower);
        give<3>(call, row + 16, second, width, lower);
    }

    // A tile of sums [rows of W, width] to the result [m, rows of W].
    template <int tile>
    static void give(const Call& call, int64_t row, int64_t m, int64_t width, const Group& group) {
        float* out = call.out(row, group.first);
        if (width == 1) return store_tile<tile>(out, 4 * group.apart);
        store_tile<tile>(call.scratch, 64);
        if (m == 16 && group.num == 16 && group.apart == 1) {
            transpose(call.scratch, out, call.ldc);
            return;
        }
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < group.num; ++j) out[i * call.ldc + j * group.apart] = call.scratch[j * 16 + i];
        }
    }

    // The compiler wants the tile's number as a literal.
    template <int tile>
    static void store_tile(float* to, int64_t stride) {
        if constexpr (tile == 0) _tile_stored(0, to, stride);
        if constexpr (tile == 1) _tile_stored(1, to, stride);
        if constexpr (tile == 2) _tile_stored(2, to, stride);
        if constexpr (tile == 3) _tile_stored(3, to, stride);
    }

    // 16 x 16
    static void transpose(const float* from, float* to, int64_t stride) {
        __m512 a[16], b[16];
        for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + 16 * i);
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            for (int j = 0; j < 2; ++j) {
                a[i + 2 * j] = unpack_low(b[i + j], b[i + j + 2]);
                a[i + 2 * j + 1] = unpack_high(b[i + j], b[i + j + 2]);
            }
        }
        // a[4 g + r]: row r + 4 c of the result in 128-bit part c, its columns 4 g to 4 g + 3
        for (int r = 0; r < 4; ++r) {
            const __m512 low0 = _mm512_shuffle_f32x4(a[r], a[4 + r], 0x44);
            const __m512 low1 = _mm512_shuffle_f32x4(a[8 + r], a[12 + r], 0x44);
            const __m512 high0 = _mm512_shuffle_f32x4(a[r], a[4 + r], 0xee);
            const __m512 high1 = _mm512_shuffle_f32x4(a[8 + r], a[12 + r], 0xee);
            _mm512_storeu_ps(to + r * stride, _mm512_shuffle_f32x4(low0, low1, 0x88));
            _mm512_storeu_ps(to + (r + 4) * stride, _mm512_shuffle_f32x4(low0, low1, 0xdd));
            _mm512_storeu_ps(to + (r + 8) * stride, _mm512_shuffle_f32x4(high0, high1, 0x88));
            _mm512_storeu_ps(to + (r + 12) * stride, _mm512_shuffle_f32x4(high0, high1, 0xdd));
        }
    }
    static __m512 unpack_low(__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }
    static __m512 unpack_high(__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }
};
