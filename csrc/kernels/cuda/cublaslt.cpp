#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <string>

namespace demiurgic::cuda {

namespace {

void expect(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw std::runtime_error(std::string(what) + " failed with status " + std::to_string(static_cast<int>(status)) +
                             " of cuBLASLt; exact=True does without it.");
}

cudaError_t error_of(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return cudaSuccess;
        case CUBLAS_STATUS_ALLOC_FAILED:
            return cudaErrorMemoryAllocation;
        case CUBLAS_STATUS_INVALID_VALUE:
            return cudaErrorInvalidValue;
        default:
            return cudaErrorLaunchFailure;
    }
}

cudaDataType_t type_of(Element element) {
    return element == Element::float32 ? CUDA_R_32F : element == Element::bfloat16 ? CUDA_R_16BF : CUDA_R_16F;
}

// Bytes, of those that the library distinguishes.
uint32_t alignment_of(const void* pointer) {
    constexpr uint64_t most = 256;
    const uint64_t address = reinterpret_cast<uintptr_t>(pointer) | most;
    return static_cast<uint32_t>(address & (~address + 1));
}

// One of the library's descriptors.
template <class Handle, cublasStatus_t (*DESTROY)(Handle)>
class Descriptor {
public:
    Descriptor() = default;
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (handle_) DESTROY(handle_);
    }
    Handle* out() { return &handle_; }
    Handle get() const { return handle_; }

private:
    Handle handle_ = nullptr;
};
using Operation = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// How products of one shape are done. The library's matrices are column-major: what is row-major to us is its own transpose
// there, of the same stride. So it computes y^T [outputs, rows] = (w^T)^T * x^T.
struct Plan {
    Operation operation;
    Layout w;  // [columns, outputs]
    Layout x;  // [columns, rows]
    Layout y;  // [outputs, rows]
    cublasLtMatmulAlgo_t algorithm = {};
    bool is_known = false;  // that there is one
};

void set(Operation& operation, cublasLtMatmulDescAttributes_t name, cublasOperation_t value) {
    const auto number = static_cast<int32_t>(value);
    expect(cublasLtMatmulDescSetAttribute(operation.get(), name, &number, sizeof(number)), "Describing a product");
}

template <class Number>
void set(Preference& preference, cublasLtMatmulPreferenceAttributes_t name, Number value) {
    expect(cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof(value)), "Describing a product");
}

void lay_out(Layout& layout, cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
    expect(cublasLtMatrixLayoutCreate(layout.out(), type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                      stride),
           "Describing a matrix");
}

class CublasLt : public ProductLibrary {
public:
    CublasLt() { expect(cublasLtCreate(&library_), "Starting"); }
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;
    ~CublasLt() override { cublasLtDestroy(library_); }

    bool takes(const Product& product) override { return plan_for(product).is_known; }

    cudaError_t multiply(const Product& product, void* workspace, cudaStream_t stream) override {
        const Plan& plan = plan_for(product);
        const float one = 1, before = product.adds ? 1 : 0;
        return error_of(cublasLtMatmul(library_, plan.operation.get(), &one, product.w, plan.w.get(), product.x,
                                       plan.x.get(), &before, product.y, plan.y.get(), product.y, plan.y.get(),
                                       &plan.algorithm, workspace, static_cast<size_t>(kWorkspaceBytes), stream));
    }

private:
    // All that an algorithm is chosen by.
    using Key = std::array<int64_t, 10>;

    const Plan& plan_for(const Product& product);
    void make(const Product& product, Plan& plan) const;

    cublasLtHandle_t library_ = nullptr;
    std::map<Key, Plan> plans_;
};

const Plan& CublasLt::plan_for(const Product& p) {
    const Key key = {static_cast<int64_t>(p.element),
                     p.rows,
                     p.outputs,
                     p.columns,
                     p.w_stride,
                     p.x_stride,
                     p.y_stride,
                     alignment_of(p.w),
                     alignment_of(p.x),
                     alignment_of(p.y)};
    const auto [entry, is_new] = plans_.try_emplace(key);
    if (is_new) {
        try {
            make(p, entry->second);
        } catch (...) {
            plans_.erase(entry);
            throw;
        }
    }
    return entry->second;
}

void CublasLt::make(const Product& p, Plan& plan) const {
    // Pedantic: whatever the process allows others, float32 is neither rounded to TF32 nor emulated.
    const auto compute = p.element == Element::float32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    expect(cublasLtMatmulDescCreate(plan.operation.out(), compute, CUDA_R_32F), "Describing a product");
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    lay_out(plan.w, type_of(p.element), p.columns, p.outputs, p.w_stride);
    lay_out(plan.x, type_of(p.element), p.columns, p.rows, p.x_stride);
    lay_out(plan.y, CUDA_R_32F, p.outputs, p.rows, p.y_stride);

    Preference preference;
    expect(cublasLtMatmulPreferenceCreate(preference.out()), "Describing a product");
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.w));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.x));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.y));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.y));

    cublasLtMatmulHeuristicResult_t found = {};
    int num_found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library_, plan.operation.get(), plan.w.get(), plan.x.get(), plan.y.get(),
                                       plan.y.get(), preference.get(), 1, &found, &num_found);
    if (status != CUBLAS_STATUS_SUCCESS || num_found == 0 || found.state != CUBLAS_STATUS_SUCCESS) return;
    plan.algorithm = found.algo;
    plan.is_known = true;
}

}  // namespace

std::shared_ptr<ProductLibrary> make_cublaslt() { return std::make_shared<CublasLt>(); }

}  // namespace demiurgic::cuda
