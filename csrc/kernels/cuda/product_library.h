#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// What multiplies many rows in place of our own kernels where the bits of a row may depend on how many are computed with it
// (exact=False): somebody's library of matrix products, which adds in an order of its own.
namespace demiurgic::cuda {

enum class Element { float32, bfloat16, float16 };

// y = x * w^T, or y += that. All are row-major; a stride is in elements, from row to row. Sums are of float32, and float32
// operands are not rounded (no TF32).
struct Product {
    Element element;  // of w and x
    int64_t rows, outputs, columns;
    const void* w;  // [outputs, columns]
    int64_t w_stride;
    const void* x;  // [rows, columns]
    int64_t x_stride;
    float* y;  // [rows, outputs]
    int64_t y_stride;
    bool adds;
};

// Used by one thread at a time.
class ProductLibrary {
public:
    // Of device memory, aligned to 256, for the products of one stream.
    static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

    virtual ~ProductLibrary() = default;

    // Whether it does this product. What it finds out it keeps, so that multiply does nothing but launch.
    virtual bool takes(const Product& product) = 0;

    // One that it takes. As a launcher of ours: it allocates nothing, waits for nothing, and can be captured once it has run.
    virtual cudaError_t multiply(const Product& product, void* workspace, cudaStream_t stream) = 0;
};

}  // namespace demiurgic::cuda
