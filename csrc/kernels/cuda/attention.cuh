#pragma once

// Paged attention, for decode and prefill alike.
//
// A query walks its context in pieces of 256 positions from the first on. In a piece: scores, each a chain of fused
// multiply-adds over the head dimension; their largest; exponentials; their sum, by lanes and a tree; and the weighted sum
// of values, in a number of strands that depends on d and T alone: position p belongs to strand p % strands, a strand is a
// chain in the order of positions, the strands are added in their order. Then the piece is merged into what those before it
// gave (Milakov and Gimelshein, 2018). So the bits depend on the query and its context alone: not on the queries computed
// with it, and not on who computes which piece. Additions that follow a multiplication are fused or separate by name, so
// that no instantiation is compiled another way.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

namespace demiurgic::cuda::attention {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kPiece = kAttendPiece;
constexpr int kBlock = kAttendBlock;
constexpr int kHalves = kPiece / kThreads;  // positions of a piece for each thread

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

// Keys come to shared memory in slices of some columns of all the piece's positions. A slice's rows lie 16 bytes further
// apart than they are long, so that threads with neighbouring positions read different banks.
template <class T>
constexpr int kSlice = 64 / sizeof(T);
template <class T>
constexpr int kSliceStride = kSlice<T> + kVector<T>;

// Threads that hold a row of values, 16 bytes each, and how many rows the block holds at a time.
template <class T>
__host__ __device__ constexpr int lanes_of(int d) {
    return d / kVector<T>;
}
template <class T>
__host__ __device__ constexpr int strands_of(int d) {
    int strands = 16;
    while (strands * lanes_of<T>(d) > kThreads) strands /= 2;
    return strands;
}

// Of dynamic shared memory, in bytes. Slices and strands take turns in the staging area.
template <class T>
__host__ __device__ constexpr int staging_bytes(int d, int queries) {
    const int slices = (d > kSlice<T> ? 2 : 1) * kPiece * kSliceStride<T> * static_cast<int>(sizeof(T));
    const int strands = strands_of<T>(d) * queries * d * static_cast<int>(sizeof(float));
    return slices > strands ? slices : strands;
}
template <class T>
__host__ __device__ constexpr int shared_bytes(int d, int queries) {
    return staging_bytes<T>(d, queries) + queries * (2 * d + kPiece) * static_cast<int>(sizeof(float));
}

// What a query has gathered of some pieces, but its sums.
struct Gathered {
    float largest, total;
};
struct Scales {
    float old, fresh;  // of the sums so far, of the piece that comes in
};

__device__ __forceinline__ Scales merge(Gathered& into, const Gathered& piece) {
    const float largest = fmaxf(into.largest, piece.largest);
    const Scales scales = {__expf(into.largest - largest), __expf(piece.largest - largest)};
    into = {largest, __fmaf_rn(piece.total, scales.fresh, __fmul_rn(into.total, scales.old))};
    return scales;
}
__device__ __forceinline__ float merged(float sum, float of_piece, const Scales& scales) {
    return __fmaf_rn(of_piece, scales.fresh, __fmul_rn(sum, scales.old));
}

// A block's queries, all of one row and key head.
struct Tile {
    BatchRow row;
    const int64_t* blocks;  // of the row
    int kv_head, group;
    int first;  // query of the row
    int num;    // up to Q; none where the row has fewer than the grid is made for

    __device__ int token(int i) const { return (first + i) / group; }
    // How many positions query i looks at.
    __device__ int64_t limit(int i) const { return row.context_length - row.num_tokens + token(i) + 1; }
    // Where it stands in q and out: [N, heads].
    __device__ int64_t place(int i, int64_t heads) const {
        return (row.first + token(i)) * heads + kv_head * group + (first + i) % group;
    }
    __device__ int64_t most_positions() const { return limit(num - 1); }
};

__device__ __forceinline__ Tile tile_of(const Attend& a, int number, int kv_head) {
    const AttendTiles& tiles = a.tiles;
    const int per_row = static_cast<int>(tiles.per_row);
    const int row = tiles.list ? tiles.list[number].row : number / per_row;
    const int first = tiles.list ? tiles.list[number].first : number % per_row * tiles.queries;
    const int group = static_cast<int>(a.heads) / static_cast<int>(a.kv_heads);
    const int64_t rest = a.rows[row].num_tokens * group - first;
    const int num = static_cast<int>(rest < 0 ? 0 : rest < tiles.queries ? rest : tiles.queries);
    return {a.rows[row], a.block_table + row * a.most_blocks, kv_head, group, first, num};
}

// Of the longest context that there is room for.
__host__ __device__ __forceinline__ int64_t pieces_of(const Attend& a) {
    return (a.most_blocks * kBlock + kPiece - 1) / kPiece;
}

// The part of a query and piece in the scratch memory of split attention.
struct Partial {
    float* sums;         // [d]
    Gathered* gathered;  // [1]
};
__device__ __forceinline__ Partial partial_of(const Attend& a, int query, int64_t piece) {
    const int64_t pieces = pieces_of(a), tile = static_cast<int64_t>(blockIdx.x) * a.kv_heads + blockIdx.y;
    auto* sums = static_cast<float*>(a.scratch);
    auto* gathered = reinterpret_cast<Gathered*>(sums + a.tiles.num * a.kv_heads * a.tiles.queries * pieces * a.d);
    const int64_t index = (tile * a.tiles.queries + query) * pieces + piece;
    return {sums + index * a.d, gathered + index};
}

// An element of out.
template <class T>
__device__ __forceinline__ void put(const Attend& a, int64_t index, float sum, float total) {
    const float value = __fdiv_rn(sum, total);
    if (a.rounds) {
        static_cast<T*>(a.out)[index] = from_float<T>(value);
    } else {
        static_cast<float*>(a.out)[index] = value;
    }
}

// What the threads of a block share.
template <class T, int Q>
struct Workspace {
    int d;
    unsigned char* staging;
    float* q;       // [Q, d] times the scale; 0 where there is no query
    float* scores;  // [Q, kPiece], then the exponentials
    float* sums;    // [Q, d] merged
    int* limits;    // [Q] positions of the piece that a query looks at; none below 1
    int64_t* keys;  // [16] where the piece's blocks begin in the cache

    __device__ T* slice(int i) const { return reinterpret_cast<T*>(staging) + (i % 2) * kPiece * kSliceStride<T>; }
    __device__ float* strands() const { return reinterpret_cast<float*>(staging); }  // [strands, Q, d]
    // Where a position's key begins in the cache, and its value.
    __device__ int64_t at(int position) const {
        return keys[position / kBlock] + static_cast<int64_t>(position % kBlock) * d;
    }
};

template <class T, int Q>
__device__ __forceinline__ void load_queries(const Attend& a, const Tile& tile, const Workspace<T, Q>& space) {
    for (int i = 0; i < Q; ++i) {
        const float* from = i < tile.num ? a.q + tile.place(i, a.heads) * space.d : nullptr;
        for (int k = thread(); k < space.d; k += kThreads) {
            space.q[i * space.d + k] = from ? __fmul_rn(from[k], a.scale) : 0;
        }
    }
}

// Begins to copy a slice of the keys of `count` positions.
template <class T, int Q>
__device__ __forceinline__ void fetch_slice(const Workspace<T, Q>& space, const T* cache, int slice, int count) {
    constexpr int per_row = kSlice<T> / kVector<T>;
    const int column = slice * kSlice<T> + thread() % per_row * kVector<T>;
    if (column < space.d) {
        T* to = space.slice(slice) + thread() % per_row * kVector<T>;
        for (int row = thread() / per_row; row < count; row += kThreads / per_row) {
            copy_async(to + row * kSliceStride<T>, cache + space.at(row) + column);
        }
    }
    end_copy_group();
}

// Lets the values come from memory to the L2 cache while the keys are multiplied.
template <class T, int Q>
__device__ __forceinline__ void prefetch_rows(const Workspace<T, Q>& space, const T* cache, int count) {
    constexpr int line = 128 / sizeof(T);
    for (int position = thread(); position < count; position += kThreads) {
        for (int column = 0; column < space.d; column += line) prefetch(cache + space.at(position) + column);
    }
}

// Goes on with the scores of this thread's first `HALVES` positions.
template <class T, int Q, int HALVES>
__device__ __forceinline__ void score_slice(const Workspace<T, Q>& space, int slice, float (&scores)[Q][kHalves]) {
    const T* staged = space.slice(slice) + thread() * kSliceStride<T>;
    const float* q = space.q + slice * kSlice<T>;
    const int rest = space.d - slice * kSlice<T>, columns = rest < kSlice<T> ? rest : kSlice<T>;
    for (int k = 0; k < columns; k += kVector<T>) {
        float keys[HALVES][kVector<T>];
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            load_floats(staged + half * kThreads * kSliceStride<T> + k, keys[half]);
        }
#pragma unroll
        for (int i = 0; i < Q; ++i) {
#pragma unroll
            for (int part = 0; part < kVector<T>; part += kVector<float>) {
                float x[kVector<float>];
                load_floats(q + i * space.d + k + part, x);
#pragma unroll
                for (int j = 0; j < kVector<float>; ++j) {
#pragma unroll
                    for (int half = 0; half < HALVES; ++half) {
                        scores[i][half] = __fmaf_rn(x[j], keys[half][part + j], scores[i][half]);
                    }
                }
            }
        }
    }
}

// The scores of all queries with `count` positions of a piece.
template <class T, int Q>
__device__ __forceinline__ void score(const Workspace<T, Q>& space, const T* cache, int count) {
    const int slices = (space.d + kSlice<T> - 1) / kSlice<T>;
    const int first_of_warp = thread() / 32 * 32;
    float scores[Q][kHalves] = {};
    fetch_slice(space, cache, 0, count);
    for (int slice = 0; slice < slices; ++slice) {
        if (slice + 1 < slices) {
            fetch_slice(space, cache, slice + 1, count);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        if (first_of_warp + kThreads < count) {
            score_slice<T, Q, 2>(space, slice, scores);
        } else if (first_of_warp < count) {
            score_slice<T, Q, 1>(space, slice, scores);
        }
        __syncthreads();  // before the next but one slice comes to the same place
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
        const int position = thread() + half * kThreads;
        for (int i = 0; i < Q; ++i) {
            if (position < count) space.scores[i * kPiece + position] = scores[i][half];
        }
    }
}

// A warp turns the scores [n] of one query into exponentials.
__device__ __forceinline__ Gathered softmax(float* scores, int n) {
    const int lane = thread() % 32;
    float largest = -INFINITY;
    for (int i = lane; i < n; i += 32) largest = fmaxf(largest, scores[i]);
    largest = warp_max(largest);
    float total = 0;
    for (int i = lane; i < n; i += 32) {
        scores[i] = __expf(scores[i] - largest);
        total += scores[i];
    }
    return {largest, warp_sum(total)};
}

// This thread's strand and columns: positions from `position` up to `end`. ALL: every query looks at all of them.
template <class T, int Q, bool ALL>
__device__ __forceinline__ void weigh_positions(const Workspace<T, Q>& space, const T* values, int strands,
                                                int& position, int end, float (&sums)[Q][kVector<T>]) {
#pragma unroll 4
    for (; position < end; position += strands) {
        float value[kVector<T>];
        load_floats(values + space.at(position), value);
#pragma unroll
        for (int i = 0; i < Q; ++i) {
            if (!ALL && position >= space.limits[i]) continue;
            const float p = space.scores[i * kPiece + position];
#pragma unroll
            for (int j = 0; j < kVector<T>; ++j) sums[i][j] = __fmaf_rn(p, value[j], sums[i][j]);
        }
    }
}

// The strands of exponentials x values, for all queries and `count` positions.
template <class T, int Q>
__device__ __forceinline__ void weigh(const Workspace<T, Q>& space, const T* cache, int num, int count) {
    const int lanes = lanes_of<T>(space.d), strands = strands_of<T>(space.d);
    const int strand = thread() / lanes, column = thread() % lanes * kVector<T>;
    if (strand >= strands) return;
    int common = count;  // positions that all queries look at
    for (int i = 0; i < num; ++i) common = common < space.limits[i] ? common : space.limits[i];
    float sums[Q][kVector<T>] = {};
    int position = strand;
    weigh_positions<T, Q, true>(space, cache + column, strands, position, common, sums);
    weigh_positions<T, Q, false>(space, cache + column, strands, position, count, sums);
#pragma unroll
    for (int i = 0; i < Q; ++i) {
        float* to = space.strands() + (strand * Q + i) * space.d + column;
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) to[j] = sums[i][j];
    }
}

template <class T, int Q>
__device__ __forceinline__ float sum_of_strands(const Workspace<T, Q>& space, int query, int column) {
    const float* strand = space.strands() + query * space.d + column;
    float sum = strand[0];
    for (int i = 1; i < strands_of<T>(space.d); ++i) sum += strand[i * Q * space.d];
    return sum;
}

// Blocks of the tile's queries: x: tile, y: key head, z: piece, where pieces are computed side by side.
template <class T, int Q>
__global__ void __launch_bounds__(kThreads) attend_tile(Attend a) {
    wait_for_previous();
    let_next_start();
    const Tile tile = tile_of(a, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
    if (tile.num == 0) return;
    const auto all_pieces = static_cast<int>((tile.most_positions() + kPiece - 1) / kPiece);
    const bool split = a.scratch != nullptr;
    const int first_piece = split ? static_cast<int>(blockIdx.z) : 0, end_piece = split ? first_piece + 1 : all_pieces;
    if (first_piece >= all_pieces) return;

    __shared__ int64_t keys[kPiece / kBlock];
    __shared__ int limits[Q];
    __shared__ Gathered gathered[Q];  // of all pieces so far, of a single piece where they are split
    __shared__ Scales scales[Q];
    const int d = static_cast<int>(a.d);
    auto* memory = dynamic_shared<unsigned char>();
    auto* floats = reinterpret_cast<float*>(memory + staging_bytes<T>(d, Q));
    const Workspace<T, Q> space = {d, memory, floats, floats + 2 * Q * d, floats + Q * d, limits, keys};
    const int warp = thread() / 32, lane = thread() % 32;

    load_queries(a, tile, space);
    for (int piece = first_piece; piece < end_piece; ++piece) {
        const int64_t rest = tile.most_positions() - int64_t{piece} * kPiece;
        const int count = static_cast<int>(rest < kPiece ? rest : kPiece);
        if (thread() < (count + kBlock - 1) / kBlock) {
            const int64_t block = tile.blocks[piece * (kPiece / kBlock) + thread()];
            keys[thread()] = (block * a.kv_heads + tile.kv_head) * kBlock * d;
        }
        if (thread() < Q) {
            const int64_t limit = thread() < tile.num ? tile.limit(thread()) - int64_t{piece} * kPiece : 0;
            limits[thread()] = static_cast<int>(limit < kPiece ? limit : kPiece);
        }
        __syncthreads();
        prefetch_rows(space, static_cast<const T*>(a.values), count);
        score(space, static_cast<const T*>(a.keys), count);
        __syncthreads();
        for (int i = warp; i < tile.num; i += kWarps) {
            if (limits[i] < 1) continue;
            const Gathered fresh = softmax(space.scores + i * kPiece, limits[i]);
            if (lane != 0) continue;
            if (piece == first_piece) {
                gathered[i] = fresh;
            } else {
                scales[i] = merge(gathered[i], fresh);
            }
        }
        __syncthreads();
        weigh(space, static_cast<const T*>(a.values), tile.num, count);
        __syncthreads();
        for (int i = 0; i < tile.num; ++i) {
            if (limits[i] < 1) continue;
            for (int column = thread(); column < d; column += kThreads) {
                const float fresh = sum_of_strands(space, i, column);
                float& sum = space.sums[i * d + column];
                sum = piece == first_piece ? fresh : merged(sum, fresh, scales[i]);
            }
        }
        __syncthreads();
    }

    for (int i = 0; i < tile.num; ++i) {
        const int64_t place = tile.place(i, a.heads);
        const Partial partial = split ? partial_of(a, i, first_piece) : Partial{};
        if (split && limits[i] < 1) continue;
        if (split && thread() == 0) *partial.gathered = gathered[i];
        for (int column = thread(); column < d; column += kThreads) {
            const float sum = space.sums[i * d + column];
            if (split) {
                partial.sums[column] = sum;
            } else {
                put<T>(a, place * d + column, sum, gathered[i].total);
            }
        }
    }
}

// The pieces of split attention in their order. x: tile, y: key head, z: query of the tile.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_pieces(Attend a) {
    wait_for_previous();
    let_next_start();
    const Tile tile = tile_of(a, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
    const int query = static_cast<int>(blockIdx.z);
    if (query >= tile.num) return;
    const int64_t pieces = (tile.limit(query) + kPiece - 1) / kPiece, place = tile.place(query, a.heads);
    for (int64_t column = thread(); column < a.d; column += kThreads) {
        const Partial first = partial_of(a, query, 0);
        Gathered gathered = *first.gathered;
        float sum = first.sums[column];
        for (int64_t piece = 1; piece < pieces; ++piece) {
            const Partial fresh = partial_of(a, query, piece);
            const Scales scales = merge(gathered, *fresh.gathered);
            sum = merged(sum, fresh.sums[column], scales);
        }
        put<T>(a, place * a.d + column, sum, gathered.total);
    }
}

template <class T, int Q>
cudaError_t launch_tiles(const Attend& a, cudaStream_t stream, bool overlaps_previous) {
    const auto tiles = static_cast<unsigned>(a.tiles.num), heads = static_cast<unsigned>(a.kv_heads);
    const auto pieces = static_cast<unsigned>(pieces_of(a));
    const auto bytes = static_cast<size_t>(shared_bytes<T>(static_cast<int>(a.d), Q));
    if (bytes > 98 << 10) return cudaErrorInvalidValue;  // and some static: 99 KiB is what the smallest devices have
    const dim3 grid(tiles, heads, a.scratch ? pieces : 1);
    const cudaError_t error = launch({grid, kThreads, bytes, stream, overlaps_previous}, attend_tile<T, Q>, a);
    if (error != cudaSuccess || !a.scratch) return error;
    return launch({dim3(tiles, heads, Q), kThreads, 0, stream, overlaps_previous}, merge_pieces<T>, a);
}

template <class T>
cudaError_t attend(const Attend& a, cudaStream_t stream, bool overlaps_previous) {
    if (a.tiles.num == 0) return cudaSuccess;  // an empty grid is a launch error
    switch (a.tiles.queries) {
        case 1:
            return launch_tiles<T, 1>(a, stream, overlaps_previous);
        case 4:
            return launch_tiles<T, 4>(a, stream, overlaps_previous);
        case 8:
            return launch_tiles<T, 8>(a, stream, overlaps_previous);
        case 16:
            return launch_tiles<T, 16>(a, stream, overlaps_previous);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace demiurgic::cuda::attention
