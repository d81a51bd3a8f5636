#pragma once

// What we use of cuBLASLt, on the host. Names and meanings are NVIDIA's: matrices are column-major, and a product does what
// its descriptors say, in an order of summation that is not ours. `fake_cublaslt` tells tests what was asked.

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
using cudaDataType = cudaDataType_t;

enum cublasLtMatmulDescAttributes_t { CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4 };
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};

namespace fake_cublaslt {

struct Library {};
struct Operation {
    cublasComputeType_t compute;
    int32_t transposes_a, transposes_b;
};
struct Matrix {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t stride;  // from column to column
};
struct Preference {
    uint64_t workspace_bytes;
    uint32_t alignment[4];  // of A, B, C, D
};

// Handles and descriptors that nobody has destroyed; what has been asked so far.
inline int num_alive = 0, num_heuristics = 0, num_products = 0;
inline bool fails = false;  // every product
// Whether there is no algorithm for D [m, n].
inline std::function<bool(uint64_t m, uint64_t n)> refuses = [](uint64_t, uint64_t) { return false; };

template <class Thing>
cublasStatus_t create(Thing** out, const Thing& value) {
    ++num_alive;
    *out = new Thing(value);
    return CUBLAS_STATUS_SUCCESS;
}
template <class Thing>
cublasStatus_t destroy(Thing* thing) {
    --num_alive;
    delete thing;
    return CUBLAS_STATUS_SUCCESS;
}

inline double element(const Matrix& matrix, const void* data, uint64_t row, uint64_t column) {
    const uint64_t i = column * static_cast<uint64_t>(matrix.stride) + row;
    switch (matrix.type) {
        case CUDA_R_32F:
            return static_cast<const float*>(data)[i];
        case CUDA_R_16F:
            return __half2float(static_cast<const __half*>(data)[i]);
        case CUDA_R_16BF:
            return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    }
    return NAN;
}

inline bool agree(const Operation& operation, const Matrix& a, const Matrix& b, const Matrix& d) {
    const auto rows = [](const Matrix& m, int32_t transposes) { return transposes ? m.columns : m.rows; };
    const auto columns = [](const Matrix& m, int32_t transposes) { return transposes ? m.rows : m.columns; };
    const auto fits = [](const Matrix& m) { return m.stride >= static_cast<int64_t>(m.rows); };
    const bool is_pedantic = operation.compute == CUBLAS_COMPUTE_32F_PEDANTIC;
    return fits(a) && fits(b) && fits(d) && a.type == b.type && d.type == CUDA_R_32F &&
           is_pedantic == (a.type == CUDA_R_32F) &&  // the plain one may be told to round float32
           rows(a, operation.transposes_a) == d.rows && columns(b, operation.transposes_b) == d.columns &&
           columns(a, operation.transposes_a) == rows(b, operation.transposes_b);
}

inline bool is_aligned(const void* pointer, uint64_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace fake_cublaslt

// What an algorithm was chosen for, and must be used for.
struct cublasLtMatmulAlgo_t {
    uint64_t workspace_bytes;
    uint32_t alignment[4];
    uint64_t m, n;
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
};

using cublasLtHandle_t = fake_cublaslt::Library*;
using cublasLtMatmulDesc_t = fake_cublaslt::Operation*;
using cublasLtMatrixLayout_t = fake_cublaslt::Matrix*;
using cublasLtMatmulPreference_t = fake_cublaslt::Preference*;

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* library) { return fake_cublaslt::create(library, {}); }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t library) { return fake_cublaslt::destroy(library); }

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
    return fake_cublaslt::create(operation, {compute, CUBLAS_OP_N, CUBLAS_OP_N});
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    return fake_cublaslt::destroy(operation);
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                                     cublasLtMatmulDescAttributes_t name, const void* value,
                                                     size_t bytes) {
    if (bytes != sizeof(int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(name == CUBLASLT_MATMUL_DESC_TRANSA ? &operation->transposes_a : &operation->transposes_b, value,
                bytes);
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows,
                                                 uint64_t columns, int64_t stride) {
    return fake_cublaslt::create(layout, {type, rows, columns, stride});
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return fake_cublaslt::destroy(layout);
}

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    return fake_cublaslt::create(preference, {0, {256, 256, 256, 256}});
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return fake_cublaslt::destroy(preference);
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                           cublasLtMatmulPreferenceAttributes_t name, const void* value,
                                                           size_t bytes) {
    const bool is_workspace = name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    if (bytes != (is_workspace ? sizeof(uint64_t) : sizeof(uint32_t))) return CUBLAS_STATUS_INVALID_VALUE;
    void* to = &preference->workspace_bytes;
    if (!is_workspace) to = &preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
    std::memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int,
                                                     cublasLtMatmulHeuristicResult_t* results, int* num_results) {
    ++fake_cublaslt::num_heuristics;
    *num_results = 0;
    if (!fake_cublaslt::agree(*operation, *a, *b, *c) || !fake_cublaslt::agree(*operation, *a, *b, *d)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (fake_cublaslt::refuses(d->rows, d->columns)) return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0] = {};
    results[0].algo.workspace_bytes = preference->workspace_bytes;
    std::memcpy(results[0].algo.alignment, preference->alignment, sizeof(preference->alignment));
    results[0].algo.m = d->rows;
    results[0].algo.n = d->columns;
    results[0].workspaceSize = preference->workspace_bytes;
    *num_results = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void* alpha,
                                     const void* a_data, cublasLtMatrixLayout_t a, const void* b_data,
                                     cublasLtMatrixLayout_t b, const void* beta, const void* c_data,
                                     cublasLtMatrixLayout_t c, void* d_data, cublasLtMatrixLayout_t d,
                                     const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                                     cudaStream_t) {
    ++fake_cublaslt::num_products;
    if (fake_cublaslt::fails) return CUBLAS_STATUS_EXECUTION_FAILED;
    const void* const data[] = {a_data, b_data, c_data, d_data};
    bool fits = algorithm->m == d->rows && algorithm->n == d->columns &&
                workspace_bytes >= algorithm->workspace_bytes && workspace && fake_cublaslt::is_aligned(workspace, 256);
    for (int i = 0; i < 4; ++i) fits = fits && fake_cublaslt::is_aligned(data[i], algorithm->alignment[i]);
    if (!fits || !fake_cublaslt::agree(*operation, *a, *b, *d)) return CUBLAS_STATUS_INVALID_VALUE;
    constexpr size_t end = 4096;
    std::memset(workspace, 0xff, end);
    std::memset(static_cast<char*>(workspace) + workspace_bytes - end, 0xff, end);
    const uint64_t length = operation->transposes_a ? a->rows : a->columns;
    for (uint64_t n = 0; n < d->columns; ++n) {
        for (uint64_t m = 0; m < d->rows; ++m) {
            float sum = 0;
            for (uint64_t k = length; k-- > 0;) {
                const double x = operation->transposes_a ? fake_cublaslt::element(*a, a_data, k, m)
                                                         : fake_cublaslt::element(*a, a_data, m, k);
                const double y = operation->transposes_b ? fake_cublaslt::element(*b, b_data, n, k)
                                                         : fake_cublaslt::element(*b, b_data, k, n);
                sum += static_cast<float>(x * y);
            }
            float result = *static_cast<const float*>(alpha) * sum;
            const float scale = *static_cast<const float*>(beta);
            if (scale != 0) result += scale * static_cast<float>(fake_cublaslt::element(*c, c_data, m, n));
            static_cast<float*>(d_data)[n * static_cast<uint64_t>(d->stride) + m] = result;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
