#pragma once

// Products of many rows by a library (product_library.h), in place of many_rows. It writes all sums; a kernel of ours then
// does with them what a Map does. Beside what products.cuh asks of it, a Map says here
//     factors(list)          which matrices it has: their outputs, side by side, are the columns of its sums; returns how many
//     column(unit, tile)     -> the first column of a tile

#include <optional>
#include <type_traits>

#include "kernels/cuda/product_library.h"
#include "kernels/cuda/products.cuh"

namespace demiurgic::cuda {

template <class T>
constexpr Element kElement = std::is_same_v<T, float>           ? Element::float32
                             : std::is_same_v<T, __nv_bfloat16> ? Element::bfloat16
                                                                : Element::float16;

struct Factor {
    Matrix matrix;
    int64_t outputs;
};
constexpr int kMostFactors = 3;

// What a library multiplies: x [rows, columns] of T, its rows `pitch` apart.
struct LibraryRows {
    const void* x;
    int64_t rows, columns, pitch;
};

// y [rows, width] float32: the products of x by the factors, side by side. Nothing where the library does not do one of them.
template <class T>
std::optional<cudaError_t> multiply(const Factor* factors, int num_factors, const LibraryRows& x, float* y,
                                    int64_t width, bool adds, const Launch& at) {
    Product products[kMostFactors];
    int64_t column = 0;
    for (int i = 0; i < num_factors; ++i) {
        const auto& [matrix, outputs] = factors[i];
        products[i] = {kElement<T>, x.rows,  outputs,    x.columns, matrix.weight, matrix.stride,
                       x.x,         x.pitch, y + column, width,     adds};
        if (!at.library->takes(products[i])) return std::nullopt;
        column += outputs;
    }
    for (int i = 0; i < num_factors; ++i) {
        const cudaError_t error = at.library->multiply(products[i], at.library_scratch, at.stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

// Block (x, y): token x, every so many outputs from y on.
constexpr int kStoreThreads = 256, kStoreBlocks = 4;

template <class T, class Map>
__global__ void __launch_bounds__(kStoreThreads) store_sums(const Map map, const float* sums, const int64_t width) {
    wait_for_previous();
    let_next_start();
    const int token = static_cast<int>(blockIdx.x), num_outputs = static_cast<int>(map.num_units()) * kTileRows;
    const int first = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    for (int i = first; i < num_outputs; i += kStoreBlocks * kStoreThreads) {
        const int unit = i / kTileRows, output = i % kTileRows;
        float y[Map::kTiles];
#pragma unroll
        for (int t = 0; t < Map::kTiles; ++t) {
            const Tile<T> tile = map.tile(unit, t);
            const float sum = output < tile.num_rows ? sums[token * width + map.column(unit, t) + output] : 0.0f;
            y[t] = tile.with_bias(sum, output);
        }
        map.store(unit, output, token, y);
    }
}

template <class T>
__global__ void __launch_bounds__(kStoreThreads) add_bias(const Live<Matrix> weights, float* y, const int columns) {
    wait_for_previous();
    let_next_start();
    const auto* bias = static_cast<const T*>(weights_of(weights).bias);
    float* row = y + static_cast<int64_t>(blockIdx.x) * columns;
    const int first = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    for (int i = first; i < columns; i += kStoreBlocks * kStoreThreads) row[i] = __fadd_rn(row[i], to_float(bias[i]));
}

// All of a Map by the library; nothing where it does not do it.
template <class T, class Map>
std::optional<cudaError_t> by_library(const Map& map, const LibraryRows& x, const Launch& at) {
    Factor factors[kMostFactors];
    const int num_factors = map.factors(factors);
    int64_t width = 0;
    for (int i = 0; i < num_factors; ++i) width += factors[i].outputs;
    auto* sums = reinterpret_cast<float*>(static_cast<char*>(at.library_scratch) + ProductLibrary::kWorkspaceBytes);
    const auto error = multiply<T>(factors, num_factors, x, sums, width, /*adds=*/false, at);
    if (!error || *error != cudaSuccess) return error;
    return launch(
        {dim3(static_cast<unsigned>(x.rows), kStoreBlocks), kStoreThreads, 0, at.stream, at.overlaps_previous},
        store_sums<T, Map>, map, sums, width);
}

// The outputs of one matrix, to where they belong at once.
template <class T>
std::optional<cudaError_t> outputs_by_library(const Live<Matrix>& weights, int64_t columns, float* out, bool adds,
                                              const LibraryRows& x, const Launch& at) {
    const Factor factor = {weights.value, columns};
    const auto error = multiply<T>(&factor, 1, x, out, columns, adds, at);
    if (!error || *error != cudaSuccess || !weights.value.bias) return error;
    return launch(
        {dim3(static_cast<unsigned>(x.rows), kStoreBlocks), kStoreThreads, 0, at.stream, at.overlaps_previous},
        add_bias<T>, weights, out, static_cast<int>(columns));
}

}  // namespace demiurgic::cuda
