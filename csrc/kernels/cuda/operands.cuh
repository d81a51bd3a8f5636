#pragma once

// Where the rows x of a product come from (products.cuh): from where they lie, or normed on the way.

#include <type_traits>

#include "kernels/cuda/products.cuh"

namespace demiurgic::cuda {

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

}  // namespace demiurgic::cuda
