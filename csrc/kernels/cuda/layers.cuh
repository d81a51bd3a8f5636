#pragma once

// The entries of layers.h for one type T: what their products are made of (Maps), where x comes from (Operands), and which
// kernel runs for how many rows. Arithmetic that a compiler might fuse is written as intrinsics that are never fused: one
// function is compiled into several kernels, and they must agree bit for bit.

#include <type_traits>

#include "kernels/cuda/library_products.cuh"
#include "kernels/cuda/products.cuh"

namespace demiurgic::cuda {

// --- operands ----------------------------------------------------------------------------------------------------------

// x [rows, pitch] of S, which becomes T where it is taken.
template <class T, class S>
struct PlainRows {
    const S* x;
    int64_t pitch;
    int columns;

    struct Row {
        const S* x;  // null: none
    };
    __device__ __forceinline__ void begin(int, int) const {}
    __device__ __forceinline__ Row row(int first, int i) const { return {i < 0 ? nullptr : x + (first + i) * pitch}; }
    __device__ __forceinline__ uint4 piece(const Row& row, int k) const {
        if constexpr (std::is_same_v<S, T>) {
            return load_piece(row.x, k, columns);
        } else {
            float values[kVector<T>];
            load_some(row.x, k, columns, values);
            return piece_of<T>(values);
        }
    }
};

constexpr int kMostNormed = 16;  // rows that a block norms

// Where a block keeps the scales of its rows.
__device__ __forceinline__ float* shared_scales() {
    __shared__ float scales[kMostNormed];
    return scales;
}

// The sum of squares of a row x [columns]: it is dealt out 128 elements at a time to up to 32 strands; a strand is summed
// lane by lane, then the lanes, then the strands: an order of the columns alone.
struct Squares {
    static constexpr int kPiece = 128, kMostStrands = 32;
    int columns;

    __device__ __forceinline__ int num_pieces() const { return (columns + kPiece - 1) / kPiece; }
    __device__ __forceinline__ int num_strands() const {
        return num_pieces() < kMostStrands ? num_pieces() : kMostStrands;
    }
    // By a warp; all its lanes get it.
    __device__ __forceinline__ float strand(const float* x, int number) const {
        float sum = 0;
        for (int piece = number; piece < num_pieces(); piece += kMostStrands) {
            float values[4];
            load_some(x, piece * kPiece + static_cast<int>(threadIdx.x) % 32 * 4, columns, values);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum = __fmaf_rn(values[j], values[j], sum);
        }
        return warp_sum(sum);
    }
    // 1 / sqrt(mean(x^2) + eps), from a strand a lane; 0 where there is none.
    __device__ __forceinline__ float scale(float strand_of_lane, float eps) const {
        const float mean = __fdiv_rn(warp_sum(strand_of_lane), static_cast<float>(columns));
        return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
    }
};

// scales [num] of rows x(0), ..., by the whole block.
template <class RowOf>
__device__ __forceinline__ void rms_scales(int num, int columns, float eps, RowOf x, float* scales) {
    __shared__ float sums[kMostNormed][Squares::kMostStrands];
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int num_warps = static_cast<int>(blockDim.x) / 32;
    const Squares squares = {columns};
    const int strands = squares.num_strands();
    for (int i = warp; i < num * strands; i += num_warps) {
        const float sum = squares.strand(x(i / strands), i % strands);
        if (lane == 0) sums[i / strands][i % strands] = sum;
    }
    __syncthreads();
    for (int i = warp; i < num; i += num_warps) {
        const float scale = squares.scale(lane < strands ? sums[i][lane] : 0.0f, eps);
        if (lane == 0) scales[i] = scale;
    }
    __syncthreads();
}

// The RMSNorm (Zhang and Sennrich, 2019) of x [., columns] float32, rounded to T once.
template <class T>
struct NormedRows {
    const float* x;
    int columns;
    Live<const void*> weight;  // [columns]
    Norm norm;

    struct Row {
        const float* x;  // null: none
        float scale;
        const void* weight;
    };
    __device__ __forceinline__ const float* at(int row) const { return x + static_cast<int64_t>(row) * columns; }
    __device__ __forceinline__ void begin(int first, int num) const {
        rms_scales(num, columns, norm.eps, [&](int i) { return at(first + i); }, shared_scales());
    }
    __device__ __forceinline__ Row row(int first, int i) const {
        if (i < 0) return {nullptr, 0, nullptr};
        return {at(first + i), shared_scales()[i], weights_of(weight)};
    }
    __device__ __forceinline__ uint4 piece(const Row& row, int k) const {
        float values[kVector<T>], weights[kVector<T>];
        load_some(row.x, k, columns, values);
        if (norm.is_float) {
            load_some(static_cast<const float*>(row.weight), k, columns, weights);
        } else {
            load_some(static_cast<const T*>(row.weight), k, columns, weights);
        }
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) values[i] = __fmul_rn(__fmul_rn(values[i], row.scale), weights[i]);
        return piece_of<T>(values);
    }

    // By a warp alone, which needs no begin().
    __device__ __forceinline__ Row row_by_warp(int number) const {
        const Squares squares = {columns};
        float strand_of_lane = 0;
#pragma unroll 4
        for (int strand = 0; strand < squares.num_strands(); ++strand) {
            const float sum = squares.strand(at(number), strand);
            if (static_cast<int>(threadIdx.x) % 32 == strand) strand_of_lane = sum;
        }
        return {at(number), squares.scale(strand_of_lane, norm.eps), weights_of(weight)};
    }
};

// Normed rows, for products of so many that no block can norm them for itself. They are written once, in out [rows, pitch]:
// by a kernel before, or by the warps of the blocks that take them. A warp takes a row, writes it and counts it, until none
// is left to take; then its block waits until all are counted. That never hangs, whichever blocks run at a time: who has
// taken a row waits for nobody before it is written. Blocks with the same tokens share y, and a Progress.
template <class T>
struct PreparedRows {
    NormedRows<T> from;
    T* out;
    int64_t pitch;
    int columns;
    Progress* progress;  // null: they are there

    using Row = typename PlainRows<T, T>::Row;
    __device__ __forceinline__ void begin(int first, int num) const {
        if (!progress) return;
        Progress& shared = progress[blockIdx.y];
        // As many warps of each block as it takes to norm all rows at a time: the fewer ask for one, the faster it goes.
        if (static_cast<int>(threadIdx.x / 32 * gridDim.x) < num) take_rows(shared, first, num);
        __syncthreads();
        if (threadIdx.x == 0) wait_until(shared.done, static_cast<unsigned>(num));
        __syncthreads();
    }
    __device__ __forceinline__ Row row(int first, int i) const { return {i < 0 ? nullptr : out + (first + i) * pitch}; }
    __device__ __forceinline__ uint4 piece(const Row& row, int k) const { return load_piece(row.x, k, columns); }

private:
    __device__ __forceinline__ void take_rows(Progress& shared, int first, int num) const {
        while (true) {
            unsigned taken = threadIdx.x % 32 == 0 ? atomicAdd(&shared.taken, 1u) : 0;
            taken = __shfl_sync(kAllLanes, taken, 0);
            if (taken >= static_cast<unsigned>(num)) return;
            const int row = first + static_cast<int>(taken);
            write_by_warp(from.row_by_warp(row), out + row * pitch);
            __threadfence();  // each lane's part, before the row is counted
            __syncwarp();
            if (threadIdx.x % 32 == 0) atomicAdd(&shared.done, 1u);
        }
    }
    __device__ __forceinline__ void write_by_warp(const typename NormedRows<T>::Row& x, T* to) const {
#pragma unroll 4
        for (int k = static_cast<int>(threadIdx.x) % 32 * kVector<T>; k < columns; k += 32 * kVector<T>) {
            *reinterpret_cast<uint4*>(to + k) = from.piece(x, k);
        }
    }
};

// out [rows, pitch]: rows as products take them. One block a row.
template <class T, class Operand>
__global__ void prepare_rows(const Operand operand, T* out, const int64_t pitch) {
    wait_for_previous();
    let_next_start();
    const int row = static_cast<int>(blockIdx.x);
    operand.begin(row, 1);
    const typename Operand::Row x = operand.row(row, 0);
    for (int k = static_cast<int>(threadIdx.x) * kVector<T>; k < operand.columns;
         k += static_cast<int>(blockDim.x) * kVector<T>) {
        *reinterpret_cast<uint4*>(out + row * pitch + k) = operand.piece(x, k);
    }
}

// --- maps --------------------------------------------------------------------------------------------------------------

// q, k and v: a unit is 16 coordinates of the first half of a head and their partners in the second, which turn together.
template <class T>
struct HeadsMap {
    static constexpr int kTiles = 2;
    Live<AttentionInWeights> weights;
    const float* cos;  // [N, d / 2], or by position
    const float* sin;
    const int64_t* positions;  // [N], or null
    const int64_t* slots;      // [N]
    int heads, kv_heads, head_dim, block_size;
    T* k_cache;    // [blocks, kv_heads, block_size, d]
    T* v_cache;    // [blocks, kv_heads, block_size, d]
    float* q_out;  // [N, heads, d]

    enum Role { kQ, kK, kV };
    struct Place {
        Role role;
        int head;   // of its role
        int first;  // coordinate of a half
    };
    __host__ __device__ __forceinline__ int units_of_head() const { return (head_dim / 2 + kTileRows - 1) / kTileRows; }
    __host__ __device__ __forceinline__ int64_t num_units() const {
        return static_cast<int64_t>(heads + 2 * kv_heads) * units_of_head();
    }
    __device__ __forceinline__ Place place(int unit) const {
        const int head = unit / units_of_head(), first = unit % units_of_head() * kTileRows;
        if (head < heads) return {kQ, head, first};
        return {head < heads + kv_heads ? kK : kV, (head - heads) % kv_heads, first};
    }
    __device__ __forceinline__ Tile<T> tile(int unit, int i) const {
        const auto [role, head, first] = place(unit);
        const AttentionInWeights w = weights_of(weights);
        const int64_t half = static_cast<int64_t>(head) * head_dim + i * (head_dim / 2);
        return tile_of<T>(role == kQ ? w.q : role == kK ? w.k : w.v, half + first, half + head_dim / 2);
    }
    int factors(Factor (&list)[kMostFactors]) const {
        const int64_t num_kv = static_cast<int64_t>(kv_heads) * head_dim;
        list[0] = {weights.value.q, static_cast<int64_t>(heads) * head_dim};
        list[1] = {weights.value.k, num_kv};
        list[2] = {weights.value.v, num_kv};
        return 3;
    }
    __device__ __forceinline__ int64_t column(int unit, int i) const {
        const int first = unit % units_of_head() * kTileRows;
        return static_cast<int64_t>(unit / units_of_head()) * head_dim + i * (head_dim / 2) + first;
    }
    __device__ __forceinline__ void store(int unit, int row, int token, const float (&y)[kTiles]) const {
        const auto [role, head, first] = place(unit);
        const int half = head_dim / 2, i = first + row;
        if (i >= half) return;
        if (role == kV) return append(v_cache, token, head, i, y[0], y[1]);
        const int64_t angle = (positions ? positions[token] : token) * half + i;
        const float c = cos[angle], s = sin[angle];
        const float a = __fsub_rn(__fmul_rn(y[0], c), __fmul_rn(y[1], s));
        const float b = __fadd_rn(__fmul_rn(y[1], c), __fmul_rn(y[0], s));
        if (role == kK) return append(k_cache, token, head, i, a, b);
        float* q = q_out + (static_cast<int64_t>(token) * heads + head) * head_dim + i;
        q[0] = a;
        q[half] = b;
    }
    __device__ __forceinline__ void append(T* cache, int token, int head, int i, float a, float b) const {
        if (slots[token] < 0) return;
        const int64_t block = slots[token] / block_size, offset = slots[token] % block_size;
        T* at = cache + ((block * kv_heads + head) * block_size + offset) * head_dim + i;
        at[0] = from_float<T>(a);
        at[head_dim / 2] = from_float<T>(b);
    }
};

__device__ __forceinline__ float activate(Activation activation, float x) {
    switch (activation) {
        case Activation::silu:
            return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x)));
        case Activation::gelu:
            return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, 0.70710678118654752f))));
        case Activation::relu:
            return x < 0 ? 0.0f : x;  // NaN stays NaN
    }
    return x;
}

// gate and up, or up alone: a unit is 16 outputs of the one and the same of the other.
template <class T, bool GATED>
struct InnerMap {
    static constexpr int kTiles = GATED ? 2 : 1;
    Live<MlpWeights> weights;
    Activation activation;
    int inner;
    T* out;  // [N, pitch], rounded as the next product takes it
    int64_t pitch;

    __host__ __device__ __forceinline__ int64_t num_units() const { return (inner + kTileRows - 1) / kTileRows; }
    __device__ __forceinline__ Tile<T> tile(int unit, int i) const {
        const MlpWeights w = weights_of(weights);
        return tile_of<T>(GATED && i == 0 ? w.gate : w.up, static_cast<int64_t>(unit) * kTileRows, inner);
    }
    int factors(Factor (&list)[kMostFactors]) const {
        list[0] = {GATED ? weights.value.gate : weights.value.up, inner};
        list[1] = {weights.value.up, inner};
        return kTiles;
    }
    __device__ __forceinline__ int64_t column(int unit, int i) const {
        return static_cast<int64_t>(i) * inner + unit * kTileRows;
    }
    __device__ __forceinline__ void store(int unit, int row, int token, const float (&y)[kTiles]) const {
        const int i = unit * kTileRows + row;
        if (i >= inner) return;
        const float active = activate(activation, y[0]);
        out[token * pitch + i] = from_float<T>(GATED ? __fmul_rn(active, y[kTiles - 1]) : active);
    }
};

// out [N, columns] = or += all outputs of one matrix: a unit is TILES * 16 of them that follow one another.
template <class T, int TILES, bool ADDS>
struct OutputsMap {
    static constexpr int kTiles = TILES;
    Live<Matrix> weights;
    int columns;
    float* out;

    __host__ __device__ __forceinline__ int64_t num_units() const {
        return (columns + TILES * kTileRows - 1) / (TILES * kTileRows);
    }
    __device__ __forceinline__ int64_t first(int unit, int i) const {
        return (static_cast<int64_t>(unit) * TILES + i) * kTileRows;
    }
    __device__ __forceinline__ Tile<T> tile(int unit, int i) const {
        return tile_of<T>(weights_of(weights), first(unit, i), columns);
    }
    __device__ __forceinline__ void store(int unit, int row, int token, const float (&y)[kTiles]) const {
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            if (first(unit, i) + row >= columns) continue;
            float& to = out[static_cast<int64_t>(token) * columns + first(unit, i) + row];
            to = ADDS ? __fadd_rn(to, y[i]) : y[i];
        }
    }
};

template <class T, int TILES, bool ADDS>
std::optional<cudaError_t> by_library(const OutputsMap<T, TILES, ADDS>& map, const LibraryRows& x, const Launch& at) {
    return outputs_by_library<T>(map.weights, map.columns, map.out, ADDS, x, at);
}

// --- which kernel ------------------------------------------------------------------------------------------------------

// The choice never shows in a result, but that of a library; the limits are for speed and for the number of kernels of a step.
constexpr int64_t kOneColumn = kColumnTokens;       // rows
constexpr int64_t kTwoColumns = 2 * kColumnTokens;  // up to here each block norms its rows for itself
constexpr int kMostColumns = 4;                     // of tokens, of a block of few_rows
constexpr int64_t kFewRows = 64;
constexpr int64_t kMostBlocks = 264;  // of few_rows; each norms once and walks several units
static_assert(kTwoColumns <= kMostNormed);

inline unsigned blocks_of(int64_t num, int64_t of_block) {
    return static_cast<unsigned>((num + of_block - 1) / of_block);
}

template <class T, int COLUMNS, class Map, class Operand>
cudaError_t launch_few(const Map& map, const Operand& x, int64_t num_rows, const Launch& at) {
    const Chunking chunking = chunking_of<T>(x.columns);
    const int64_t units = map.num_units();
    const dim3 grid(blocks_of(units < kMostBlocks ? units : kMostBlocks, 1),
                    blocks_of(num_rows, COLUMNS * kColumnTokens));
    const dim3 block(static_cast<unsigned>(32 * chunking.num_chunks));
    return launch({grid, block, 0, at.stream, at.overlaps_previous}, few_rows<T, COLUMNS, Map, Operand>, map, x,
                  chunking, num_rows);
}

template <class T, class Map, class Operand>
cudaError_t launch_many(const Map& map, const Operand& x, int64_t num_rows, const Launch& at) {
    const dim3 grid(blocks_of(map.num_units(), kManyUnits), blocks_of(num_rows, kManyTokens));
    return launch({grid, kManyThreads, 0, at.stream, at.overlaps_previous}, many_rows<T, Map, Operand>, map, x,
                  chunking_of<T>(x.columns), num_rows);
}

template <class T>
int64_t pitch_of(int64_t columns) {
    return (columns + kVector<T> - 1) / kVector<T> * kVector<T>;
}

inline int64_t buffer_bytes(int64_t rows, int64_t columns, int64_t element_bytes) {
    return (rows * (columns + 15) * element_bytes + 255) / 256 * 256;
}

template <class T, class Operand>
cudaError_t launch_prepare(const Operand& x, T* out, int64_t pitch, int64_t num_rows, const Launch& at) {
    return launch({blocks_of(num_rows, 1), 256, 0, at.stream, at.overlaps_previous}, prepare_rows<T, Operand>, x, out,
                  pitch);
}

// Rows as products of many take them, written to scratch where they are not.
template <class T>
cudaError_t prepared(const PlainRows<T, T>& x, int64_t, const Launch&, PlainRows<T, T>& out) {
    out = x;
    return cudaSuccess;
}
template <class T, class S>
cudaError_t prepared(const PlainRows<T, S>& x, int64_t num_rows, const Launch& at, PlainRows<T, T>& out) {
    T* buffer = static_cast<T*>(at.scratch);
    out = {buffer, pitch_of<T>(x.columns), x.columns};
    return launch_prepare(x, buffer, out.pitch, num_rows, at);
}
template <class T>
cudaError_t prepared(const NormedRows<T>& x, int64_t num_rows, const Launch& at, PreparedRows<T>& out) {
    const bool library_may_multiply = at.library && num_rows > kFewRows;
    out = {x, static_cast<T*>(at.scratch), pitch_of<T>(x.columns), x.columns,
           library_may_multiply ? nullptr : at.progress};
    return out.progress ? cudaSuccess : launch_prepare(x, out.out, out.pitch, num_rows, at);
}

template <class T>
LibraryRows library_rows(const PlainRows<T, T>& x, int64_t num_rows) {
    return {x.x, num_rows, x.columns, x.pitch};
}
template <class T>
LibraryRows library_rows(const PreparedRows<T>& x, int64_t num_rows) {
    return {x.out, num_rows, x.columns, x.pitch};
}

// `narrow`: the map for one column of tokens, where many small units fill the device; `wide`: for more.
template <class T, class Narrow, class Wide, class Operand>
cudaError_t product(const Narrow& narrow, const Wide& wide, const Operand& x, int64_t num_rows, const Launch& at) {
    if (num_rows == 0) return cudaSuccess;  // an empty grid is a launch error
    if (num_rows <= kOneColumn) return launch_few<T, 1>(narrow, x, num_rows, at);
    if (num_rows <= kTwoColumns) return launch_few<T, 2>(wide, x, num_rows, at);
    std::conditional_t<std::is_same_v<Operand, NormedRows<T>>, PreparedRows<T>, PlainRows<T, T>> rows;
    const cudaError_t error = prepared(x, num_rows, at, rows);
    if (error != cudaSuccess) return error;
    if (num_rows <= kFewRows) return launch_few<T, kMostColumns>(wide, rows, num_rows, at);
    if (at.library) {
        const auto by = by_library<T>(wide, library_rows(rows, num_rows), at);
        if (by) return *by;
    }
    return launch_many<T>(wide, rows, num_rows, at);
}

template <class T, bool ADDS, class Operand>
cudaError_t outputs(const Live<Matrix>& weights, int64_t columns, float* out, const Operand& x, int64_t num_rows,
                    const Launch& at) {
    const int num = static_cast<int>(columns);
    return product<T>(OutputsMap<T, 1, ADDS>{weights, num, out}, OutputsMap<T, 2, ADDS>{weights, num, out}, x, num_rows,
                      at);
}

// A member of an entry's weights.
template <class Weights, class Member>
Live<Member> part(const Live<Weights>& weights, Member Weights::* member) {
    return {weights.value.*member, weights.table ? &(weights.table->*member) : nullptr};
}

// --- entries -----------------------------------------------------------------------------------------------------------

// One block a row.
template <class T>
__global__ void embed_rows(const Embed a) {
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x;
    for (int64_t i = row * blockDim.x + threadIdx.x; i < a.num_progress; i += int64_t{gridDim.x} * blockDim.x) {
        a.progress[i] = {};
    }
    const EmbedWeights w = weights_of(a.weights);
    const T* from = static_cast<const T*>(w.table) + a.tokens[row] * w.stride;
    for (int64_t k = threadIdx.x; k < a.hidden; k += blockDim.x) a.out[row * a.hidden + k] = to_float(from[k]);
}

template <class T>
cudaError_t embed(const Embed& a, const Launch& at) {
    if (a.num_tokens == 0) return cudaSuccess;
    return launch({blocks_of(a.num_tokens, 1), 256, 0, at.stream, at.overlaps_previous}, embed_rows<T>, a);
}

template <class T>
cudaError_t attention_in(const AttentionIn& a, const Launch& at) {
    const HeadsMap<T> map = {a.weights,
                             a.cos,
                             a.sin,
                             a.positions,
                             a.slots,
                             static_cast<int>(a.heads),
                             static_cast<int>(a.kv_heads),
                             static_cast<int>(a.head_dim),
                             static_cast<int>(a.block_size),
                             static_cast<T*>(a.k_cache),
                             static_cast<T*>(a.v_cache),
                             a.q_out};
    const NormedRows<T> x = {a.x, static_cast<int>(a.hidden), part(a.weights, &AttentionInWeights::norm), a.norm};
    return product<T>(map, map, x, a.num_tokens, at);
}

template <class T>
cudaError_t attention_out(const AttentionOut& a, const Launch& at) {
    const Live<Matrix> weights = part(a.weights, &AttentionOutWeights::out);
    const int columns = static_cast<int>(a.columns);
    if (a.is_rounded) {
        const PlainRows<T, T> x = {static_cast<const T*>(a.attended), a.columns, columns};
        return outputs<T, true>(weights, a.hidden, a.x, x, a.num_tokens, at);
    }
    const PlainRows<T, float> x = {static_cast<const float*>(a.attended), a.columns, columns};
    return outputs<T, true>(weights, a.hidden, a.x, x, a.num_tokens, at);
}

template <class T>
cudaError_t mlp(const Mlp& a, const Launch& at) {
    const NormedRows<T> x = {a.x, static_cast<int>(a.hidden), part(a.weights, &MlpWeights::norm), a.norm};
    T* inner = reinterpret_cast<T*>(static_cast<char*>(at.scratch) + buffer_bytes(a.num_tokens, a.hidden, sizeof(T)));
    const PlainRows<T, T> activated = {inner, pitch_of<T>(a.inner), static_cast<int>(a.inner)};
    cudaError_t error;
    if (a.is_gated) {
        const InnerMap<T, true> map = {a.weights, a.activation, activated.columns, inner, activated.pitch};
        error = product<T>(map, map, x, a.num_tokens, at);
    } else {
        const InnerMap<T, false> map = {a.weights, a.activation, activated.columns, inner, activated.pitch};
        error = product<T>(map, map, x, a.num_tokens, at);
    }
    if (error != cudaSuccess) return error;
    return outputs<T, true>(part(a.weights, &MlpWeights::down), a.hidden, a.x, activated, a.num_tokens, at);
}

template <class T>
cudaError_t head(const Head& a, const Launch& at) {
    const NormedRows<T> x = {a.x, static_cast<int>(a.hidden), part(a.weights, &HeadWeights::norm), a.norm};
    return outputs<T, false>(part(a.weights, &HeadWeights::head), a.vocab, a.logits, x, a.num_rows, at);
}

template <class T>
constexpr Layers layers_of() {
    return {embed<T>, attention_in<T>, attention_out<T>, mlp<T>, head<T>};
}

}  // namespace demiurgic::cuda
