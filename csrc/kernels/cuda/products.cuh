#pragma once

// Products of activations x [rows, K] by live row-major weights W [N, K], in one order of summation whatever the number of
// rows. K is cut into chunks (chunk_of), a function of K and the type alone. Each is summed from zero, step by step: a step
// is 64 bytes of a row of W. The sums of the chunks are added in order. With few rows (few_rows) each warp of a block has a
// chunk, and all of K is in flight at once; with many (many_rows) each warp walks all chunks of its own outputs.
//
// 16-bit types: a step is two mma.m16n8k16, with 16 rows of W on the long side, so that up to 8 rows of x cost what one
// costs. A lane's 16 bytes of a row of W go into the instructions as they come: which place of K meets which operand of the
// instruction is free, as long as x is dealt out alike. float32: a step is 16 fused multiply-adds one after the other.
//
// What is computed from the sums is a Map's business:
//     kTiles                 tiles of 16 rows of W whose outputs belong together: both halves of a head, a gate and its up
//     num_units()            how many such groups there are
//     tile(unit, i)          -> Tile<T>
//     store(unit, row, token, y)     y [kTiles]: output `row` (0 to 15) of each tile, with its bias
// Where x comes from is an Operand's:
//     begin(first, num)      called by the whole block before it takes anything of rows [first, first + num)
//     row(first, i)          -> Row, what a lane has to know of row first + i; i = -1: of none. many_rows wants its elements
//                            of T as they lie, Row::x
//     piece(row, k)          -> uint4, elements k, k + 1, ... of a row as the instruction takes them; 0 beyond the row's end

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/layers.h"

namespace demiurgic::cuda {

// --- what the order of summation depends on ----------------------------------------------------------------------------

template <class T>
constexpr int kStep = 64 / static_cast<int>(sizeof(T));  // elements of K

constexpr int kMostChunks = 16;

struct Chunking {
    int columns;    // K
    int num_steps;  // of all K; the last one may be cut short
    int chunk;      // steps of a chunk; the last one may have fewer
    int num_chunks;
};

template <class T>
inline Chunking chunking_of(int64_t columns) {
    constexpr int least = 4;  // steps, so that a warp has some KiB in flight
    const int num_steps = static_cast<int>((columns + kStep<T> - 1) / kStep<T>);
    const int even = (num_steps + kMostChunks - 1) / kMostChunks, chunk = even > least ? even : least;
    return {static_cast<int>(columns), num_steps, chunk, (num_steps + chunk - 1) / chunk};
}

// --- pieces of 16 bytes ------------------------------------------------------------------------------------------------

__device__ __forceinline__ bool is_aligned(const void* row) { return reinterpret_cast<uintptr_t>(row) % 16 == 0; }

// Elements k and the following of row [columns], k a multiple of theirs; 0 beyond its end.
template <class T>
__device__ __forceinline__ uint4 load_piece(const T* row, int k, int columns) {
    if (!row || k >= columns) return make_uint4(0, 0, 0, 0);
    const T* from = row + k;
    if (k + kVector<T> <= columns && is_aligned(row)) {
        return *reinterpret_cast<const uint4*>(from);
    }
    T values[kVector<T>] = {};
    for (int i = 0; i < kVector<T>; ++i) {
        if (k + i < columns) values[i] = from[i];
    }
    uint4 piece;
    memcpy(&piece, values, sizeof(piece));
    return piece;
}

// The same as NUM float32.
template <int NUM, class S>
__device__ __forceinline__ void load_some(const S* row, int k, int columns, float (&to)[NUM]) {
#pragma unroll
    for (int first = 0; first < NUM; first += kVector<S>) {
        const uint4 piece = load_piece(row, k + first, columns);
        S values[kVector<S>];
        memcpy(values, &piece, sizeof(piece));
#pragma unroll
        for (int i = 0; i < kVector<S> && i < NUM; ++i) to[first + i] = to_float(values[i]);
    }
}

template <class T>
__device__ __forceinline__ uint4 piece_of(const float (&from)[kVector<T>]) {
    T values[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) values[i] = from_float<T>(from[i]);
    uint4 piece;
    memcpy(&piece, values, sizeof(piece));
    return piece;
}

// 16 bytes of W, which nobody reads again.
template <class T>
__device__ __forceinline__ uint4 load_weights(const T* row, int k, int columns) {
    const T* from = row + k;
    if (row && k + kVector<T> <= columns && is_aligned(row)) {
        return __ldcs(reinterpret_cast<const uint4*>(from));
    }
    return load_piece(row, k, columns);
}

// --- tiles of W --------------------------------------------------------------------------------------------------------

constexpr int kTileRows = 16;
constexpr int kColumnTokens = 8;  // rows of x on the short side of the instruction

template <class T>
struct Tile {
    const T* weight;  // of its first row
    int64_t stride;
    const T* bias;  // null: none
    int num_rows;   // 0 to 16

    __device__ __forceinline__ const T* row(int i) const { return i < num_rows ? weight + i * stride : nullptr; }
    __device__ __forceinline__ float with_bias(float y, int i) const {
        return bias && i < num_rows ? __fadd_rn(y, to_float(bias[i])) : y;
    }
};

// Rows [first, first + 16) of a matrix, those below `end`.
template <class T>
__device__ __forceinline__ Tile<T> tile_of(const Matrix& matrix, int64_t first, int64_t end) {
    const auto* bias = static_cast<const T*>(matrix.bias);
    const int64_t num = end - first < kTileRows ? end - first : kTileRows;
    return {static_cast<const T*>(matrix.weight) + first * matrix.stride, matrix.stride, bias ? bias + first : nullptr,
            num > 0 ? static_cast<int>(num) : 0};
}

// The kernel's own copy, read through the table where there is one.
template <class Weights>
__device__ __forceinline__ Weights weights_of(const Live<Weights>& live) {
    return live.table ? *live.table : live.value;
}

// --- one step ----------------------------------------------------------------------------------------------------------

// A lane's sums, as the tensor core's instruction lays them out: with lane = 4 * row + pair, [0], [1] are outputs `row` of
// the tile for tokens 2 pair and 2 pair + 1 of the column, [2], [3] those of output row + 8.
template <int TILES, int COLUMNS>
using Sums = float[TILES][COLUMNS][4];

// w[i]: the lane's pieces of rows `row` and row + 8 of tile i; x[c]: its piece of token `row` of column c; each is piece
// `pair` of the step's four.
template <class T>
struct Step {
    template <int TILES, int COLUMNS>
    static __device__ __forceinline__ void add(Sums<TILES, COLUMNS>& sums, const uint4 (&w)[TILES][2],
                                               const uint4 (&x)[COLUMNS]) {
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                mma<T>(sums[i][c], {w[i][0].x, w[i][1].x, w[i][0].y, w[i][1].y}, {x[c].x, x[c].y});
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                mma<T>(sums[i][c], {w[i][0].z, w[i][1].z, w[i][0].w, w[i][1].w}, {x[c].z, x[c].w});
            }
        }
    }
};

// One element of K: the lane's two outputs of a tile by its two tokens of a column.
__device__ __forceinline__ void multiply_add(float (&sums)[4], float w0, float w8, float x0, float x1) {
    sums[0] = __fmaf_rn(w0, x0, sums[0]);
    sums[1] = __fmaf_rn(w0, x1, sums[1]);
    sums[2] = __fmaf_rn(w8, x0, sums[2]);
    sums[3] = __fmaf_rn(w8, x1, sums[3]);
}

__device__ __forceinline__ float element(const uint4& piece, int i) {
    return __uint_as_float(i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w);
}

template <>
struct Step<float> {
    // The pieces are dealt out as for the tensor core; a lane gets what it lacks from the lanes that have it.
    template <int TILES, int COLUMNS>
    static __device__ __forceinline__ void add(Sums<TILES, COLUMNS>& sums, const uint4 (&w)[TILES][2],
                                               const uint4 (&x)[COLUMNS]) {
        const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, pair = lane % 4;
#pragma unroll
        for (int k = 0; k < kStep<float>; ++k) {
            float w0[TILES], w8[TILES];
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                w0[i] = __shfl_sync(kAllLanes, element(w[i][0], k % 4), 4 * row + k / 4);
                w8[i] = __shfl_sync(kAllLanes, element(w[i][1], k % 4), 4 * row + k / 4);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const float x0 = __shfl_sync(kAllLanes, element(x[c], k % 4), 8 * pair + k / 4);
                const float x1 = __shfl_sync(kAllLanes, element(x[c], k % 4), 8 * pair + 4 + k / 4);
#pragma unroll
                for (int i = 0; i < TILES; ++i) multiply_add(sums[i][c], w0[i], w8[i], x0, x1);
            }
        }
    }
};

// --- few rows ----------------------------------------------------------------------------------------------------------

// The sums of chunks, on their way to the threads that add them up: one column of tokens at a time.
template <int TILES>
struct ChunkSums {
    // 20 floats from token to token: the lanes of a warp write to 32 different banks.
    float values[kMostChunks][TILES][kColumnTokens][20];

    template <int COLUMNS>
    __device__ __forceinline__ void put(int chunk, const Sums<TILES, COLUMNS>& sums, int column) {
        const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, pair = lane % 4;
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) values[chunk][i][2 * pair + j % 2][row + j / 2 * 8] = sums[i][column][j];
        }
    }

    __device__ __forceinline__ float total(int num_chunks, int tile, int token, int row) const {
        float y = 0;
        for (int chunk = 0; chunk < num_chunks; ++chunk) y = __fadd_rn(y, values[chunk][tile][token][row]);
        return y;
    }
};

// Block (x, y): units x, x + grid.x, ... for tokens [y, y + 1) * 8 * COLUMNS. Its warps are the chunks.
template <class T, int COLUMNS, class Map, class Operand>
__global__ void __launch_bounds__(32 * kMostChunks)
    few_rows(const Map map, const Operand operand, const Chunking chunking, const int num_rows) {
    constexpr int kTiles = Map::kTiles;
    constexpr int kAhead = kTiles * COLUMNS == 1 ? 4 : COLUMNS <= 2 ? 2 : 1;  // steps of W in flight
    __shared__ ChunkSums<kTiles> chunk_sums;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane / 4, pair = lane % 4;
    const int begin = warp * chunking.chunk;
    const int end = begin + chunking.chunk < chunking.num_steps ? begin + chunking.chunk : chunking.num_steps;
    const int first_token = static_cast<int>(blockIdx.y) * COLUMNS * kColumnTokens;
    const int num_units = static_cast<int>(map.num_units());

    const int rest = num_rows - first_token, most = COLUMNS * kColumnTokens;
    const int num_tokens = rest < most ? rest : most;  // of this block

    bool has_begun = false;
    typename Operand::Row x_rows[COLUMNS] = {};
    for (int unit = static_cast<int>(blockIdx.x); unit < num_units; unit += static_cast<int>(gridDim.x)) {
        Tile<T> tiles[kTiles];
        const T* w_rows[kTiles][2];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            tiles[i] = map.tile(unit, i);
            w_rows[i][0] = tiles[i].row(row);
            w_rows[i][1] = tiles[i].row(row + 8);
        }
        const auto load = [&](int step, uint4(&w)[kTiles][2]) {
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    w[i][half] = step < end ? load_weights(w_rows[i][half], step * kStep<T> + pair * kVector<T>,
                                                           chunking.columns)
                                            : make_uint4(0, 0, 0, 0);
                }
            }
        };
        uint4 w[kAhead][kTiles][2];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) load(begin + i, w[i]);

        if (!has_begun) {  // the first weights are on their way: now what depends on the kernel before
            has_begun = true;
            wait_for_previous();
            let_next_start();
            operand.begin(first_token, num_tokens);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const int token = c * kColumnTokens + row;
                x_rows[c] = operand.row(first_token, token < num_tokens ? token : -1);
            }
        }

        Sums<kTiles, COLUMNS> sums = {};
        for (int step = begin; step < end; step += kAhead) {
            uint4 x[kAhead][COLUMNS];
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    x[i][c] = operand.piece(x_rows[c], (step + i) * kStep<T> + pair * kVector<T>);
                }
            }
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                if (step + i < end) Step<T>::add(sums, w[i], x[i]);
                load(step + i + kAhead, w[i]);
            }
        }

#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            chunk_sums.put(warp, sums, c);
            __syncthreads();
            for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kColumnTokens;
                 i += static_cast<int>(blockDim.x)) {
                const int token = c * kColumnTokens + i / kTileRows, output = i % kTileRows;
                if (token >= num_tokens) break;
                float y[kTiles];
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    y[tile] = tiles[tile].with_bias(chunk_sums.total(chunking.num_chunks, tile, i / kTileRows, output),
                                                    output);
                }
                map.store(unit, output, first_token + token, y);
            }
            __syncthreads();
        }
    }
}

// --- many rows ---------------------------------------------------------------------------------------------------------

constexpr int kManyTokens = 128;  // of a block
constexpr int kManyUnits = 4;     // of a block
constexpr int kManyThreads = 256;

// Rows of one operand in shared memory, one step of K.
template <int ROWS>
struct Stage {
    uint4 pieces[ROWS][4];

    // Where piece `pair` of a row is: moved so that lanes that read the same piece of every other row meet other banks.
    static __device__ __forceinline__ int place(int row, int pair) { return pair ^ (row / 2 % 4); }

    __device__ __forceinline__ const uint4& at(int row, int pair) const { return pieces[row][place(row, pair)]; }

    template <class T>
    __device__ __forceinline__ void fill(int row, int pair, const T* from, int step, int columns) {
        const int k = step * kStep<T> + pair * kVector<T>;
        uint4* to = &pieces[row][place(row, pair)];
        if (from && k + kVector<T> <= columns && is_aligned(from)) {
            copy_async(to, from + k);
        } else {
            *to = load_piece(from, k, columns);
        }
    }
};

// The step of few_rows, in the same order, from stages: rows of W from w_row, tokens from x_row.
template <class T>
struct StagedStep {
    template <int TILES, int COLUMNS, int W, int X>
    static __device__ __forceinline__ void add(Sums<TILES, COLUMNS>& sums, const Stage<W>& w, int w_row,
                                               const Stage<X>& x, int x_row) {
        const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, pair = lane % 4;
        uint4 w_pieces[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            w_pieces[i][0] = w.at(w_row + i * kTileRows + row, pair);
            w_pieces[i][1] = w.at(w_row + i * kTileRows + row + 8, pair);
        }
        uint4 x_pieces[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) x_pieces[c] = x.at(x_row + c * kColumnTokens + row, pair);
        Step<T>::add(sums, w_pieces, x_pieces);
    }
};

template <>
struct StagedStep<float> {
    template <int TILES, int COLUMNS, int W, int X>
    static __device__ __forceinline__ void add(Sums<TILES, COLUMNS>& sums, const Stage<W>& w, int w_row,
                                               const Stage<X>& x, int x_row) {
        const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, pair = lane % 4;
#pragma unroll
        for (int four = 0; four < 4; ++four) {
            uint4 w0[TILES], w8[TILES];
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                w0[i] = w.at(w_row + i * kTileRows + row, four);
                w8[i] = w.at(w_row + i * kTileRows + row + 8, four);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const uint4 x0 = x.at(x_row + c * kColumnTokens + 2 * pair, four);
                const uint4 x1 = x.at(x_row + c * kColumnTokens + 2 * pair + 1, four);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        multiply_add(sums[i][c], element(w0[i], k), element(w8[i], k), element(x0, k), element(x1, k));
                    }
                }
            }
        }
    }
};

// Block (x, y): four units from 4 x for 128 tokens from 128 y; the operand's rows are of T where they lie. Each warp has one
// unit and half of the tokens, and walks all of K with the others, which share the stages.
template <class T, class Map, class Operand>
__global__ void __launch_bounds__(kManyThreads)
    many_rows(const Map map, const Operand operand, const Chunking chunking, const int num_rows) {
    constexpr int kTiles = Map::kTiles;
    constexpr int kUnitRows = kTiles * kTileRows, kStages = 3, kColumns = kManyTokens / 2 / kColumnTokens;
    constexpr int kWRows = kManyUnits * kUnitRows;
    constexpr int kWPieces = kWRows * 4 / kManyThreads, kXPieces = kManyTokens * 4 / kManyThreads;  // of a thread
    __shared__ Stage<kWRows> w_stages[kStages];
    __shared__ Stage<kManyTokens> x_stages[kStages];
    wait_for_previous();
    let_next_start();
    const int first_token = static_cast<int>(blockIdx.y) * kManyTokens, rest = num_rows - first_token;
    const int num_tokens = rest < kManyTokens ? rest : kManyTokens;  // of this block
    operand.begin(first_token, num_tokens);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int num_units = static_cast<int>(map.num_units()), first_unit = static_cast<int>(blockIdx.x) * kManyUnits;

    const T* w_from[kWPieces];  // thread t fills piece t % 4 of rows t / 4, t / 4 + 64, ...
    const T* x_from[kXPieces];
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
        const int row = (thread + i * kManyThreads) / 4, unit = first_unit + row / kUnitRows;
        w_from[i] = unit < num_units ? map.tile(unit, row / kTileRows % kTiles).row(row % kTileRows) : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
        const int row = (thread + i * kManyThreads) / 4;
        x_from[i] = operand.row(first_token, row < num_tokens ? row : -1).x;
    }
    const auto fill = [&](int step) {
        if (step < chunking.num_steps) {
            const int stage = step % kStages;
#pragma unroll
            for (int i = 0; i < kWPieces; ++i) {
                w_stages[stage].fill((thread + i * kManyThreads) / 4, thread % 4, w_from[i], step, chunking.columns);
            }
#pragma unroll
            for (int i = 0; i < kXPieces; ++i) {
                x_stages[stage].fill((thread + i * kManyThreads) / 4, thread % 4, x_from[i], step, chunking.columns);
            }
        }
        end_copy_group();
    };
    for (int step = 0; step < kStages - 1; ++step) fill(step);

    const int unit = first_unit + warp % kManyUnits, x_row = warp / kManyUnits * (kManyTokens / 2);
    Sums<kTiles, kColumns> sums = {}, total = {};
    for (int step = 0; step < chunking.num_steps; ++step) {
        wait_for_copies<kStages - 2>();  // all groups but the newest kStages - 2: this step's are there
        __syncthreads();
        fill(step + kStages - 1);  // where the step before was read
        StagedStep<T>::add(sums, w_stages[step % kStages], warp % kManyUnits * kUnitRows, x_stages[step % kStages],
                           x_row);
        if ((step + 1) % chunking.chunk != 0 && step + 1 != chunking.num_steps) continue;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    total[i][c][j] = __fadd_rn(total[i][c][j], sums[i][c][j]);
                    sums[i][c][j] = 0;
                }
            }
        }
    }

    if (unit >= num_units) return;
    Tile<T> tiles[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) tiles[i] = map.tile(unit, i);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int token = x_row + c * kColumnTokens + lane % 4 * 2 + j % 2, output = lane / 4 + j / 2 * 8;
            if (token >= num_tokens) continue;
            float y[kTiles];
#pragma unroll
            for (int i = 0; i < kTiles; ++i) y[i] = tiles[i].with_bias(total[i][c][j], output);
            map.store(unit, output, first_token + token, y);
        }
    }
}

}  // namespace demiurgic::cuda
