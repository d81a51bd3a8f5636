#pragma once

// The entries of layers.h for one type T: what their products are made of (Maps), and which kernel runs for how many rows.
// Arithmetic that a compiler might fuse is written as intrinsics that are never fused, here and in operands.cuh: one function
// is compiled into several kernels, and they must agree bit for bit.

#include <type_traits>

#include "kernels/cuda/library_products.cuh"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/products.cuh"

namespace demiurgic::cuda {

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
