#pragma once

// What our kernels need beyond plain CUDA C++, each with a form for the host, where tests run them (tests/cpp/simt). A
// kernel that takes launches, dynamic shared memory and instructions of the device from here compiles there as it stands.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <utility>

namespace demiurgic::cuda {

constexpr unsigned kAllLanes = 0xffffffff;

// --- launches ----------------------------------------------------------------------------------------------------------

struct LaunchShape {
    dim3 grid;
    dim3 block;
    size_t shared_bytes = 0;  // dynamic
    cudaStream_t stream = nullptr;
    // The kernel may start while the one before it in the stream ends (from sm_90 on only): what it reads of the other's
    // work comes after wait_for_previous().
    bool overlaps_previous = false;
};

// Lets the kernel have `bytes` of dynamic shared memory. Unasked it has 48 KiB less its static memory; once it asks, it gets
// all that a block can have: a limit that fits one launch could be too low for that of another thread.
template <class... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), size_t bytes) {
    cudaFuncAttributes now;
    if (const cudaError_t error = cudaFuncGetAttributes(&now, kernel); error != cudaSuccess) return error;
    if (bytes <= static_cast<size_t>(now.maxDynamicSharedSizeBytes)) return cudaSuccess;
    int device = 0, most = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                most - static_cast<int>(now.sharedSizeBytes));
}

// Arguments become the kernel's own parameter types.
template <class... Parameters, class... Arguments>
cudaError_t launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
    if (shape.shared_bytes > 0) {
        if (const cudaError_t error = allow_shared(kernel, shape.shared_bytes); error != cudaSuccess) return error;
    }
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = shape.stream;
    config.attrs = &overlap;
    config.numAttrs = shape.overlaps_previous ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Programmatic dependent launch. Nothing that an earlier kernel of the stream wrote may be read before this, and nothing
// that it reads may be written.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the stream's next kernel may start, where it is launched to overlap; it still waits for this one's end
// before it reads (wait_for_previous).
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- blocks that wait for each other -----------------------------------------------------------------------------------

// Waits until `count` is `least` or more: what other blocks wrote and fenced before they counted can be read from here on. By
// one thread of a block; the others meet it after.
__device__ __forceinline__ void wait_until(const volatile unsigned& count, unsigned least) {
    while (count < least) {
    }
    __threadfence();
}

// --- memory ------------------------------------------------------------------------------------------------------------

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes);
#else
    return static_cast<T*>(simt::dynamic_shared());
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// To the nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// Elements that one load of 16 bytes brings.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// `from` is aligned to 16 bytes, so is `to` below.
template <class T>
__device__ __forceinline__ void load_vector(const T* from, T (&to)[kVector<T>]) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    memcpy(to, &bits, sizeof(bits));
}

template <class T>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[kVector<T>]) {
    T values[kVector<T>];
    load_vector(from, values);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) to[i] = to_float(values[i]);
}

template <class T>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[kVector<T>]) {
    T values[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) values[i] = from_float<T>(from[i]);
    uint4 bits;
    memcpy(&bits, values, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
}

// Copies 16 bytes to shared memory without a register between, from sm_80 on. Both are aligned to 16 bytes. What is copied is
// there after wait_for_copies and a __syncthreads.
__device__ __forceinline__ void copy_async(void* to_shared, const void* from) {
#ifdef __CUDACC__
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
    memcpy(to_shared, from, 16);
#endif
}

// A thread's copies since the last call become a group.
__device__ __forceinline__ void end_copy_group() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for a thread's own groups but the newest `PENDING`.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Lets the line at `from` come to the L2 cache.
__device__ __forceinline__ void prefetch(const void* from) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#else
    (void)from;
#endif
}

// --- arithmetic --------------------------------------------------------------------------------------------------------

// Rounded once: nvcc fuses a multiplication and an addition of plain floats.
__host__ __device__ __forceinline__ float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
__host__ __device__ __forceinline__ float rounded_sum(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

// --- warps -------------------------------------------------------------------------------------------------------------

// The sum over a warp, by a tree of fixed shape: all lanes get the same bits.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
    return x;
}

// --- tensor cores ------------------------------------------------------------------------------------------------------

// The one instruction of all 16-bit products: mma.sync.m16n8k16, float32 accumulators. sums [16, 8] += a [16, 16] x
// b [16, 8], T is __nv_bfloat16 or __half. With lane = 4 * row + pair (row 0 to 7, pair 0 to 3), a lane holds two elements
// a register, the first in the low half:
//   a[0] = a(row, 2 pair + 0, 1)        a[1] = a(row + 8, 2 pair + 0, 1)
//   a[2] = a(row, 2 pair + 8, 9)        a[3] = a(row + 8, 2 pair + 8, 9)
//   b[0] = b(2 pair + 0, 1; row)        b[1] = b(2 pair + 8, 9; row)        its column is `row`
//   sums[0], [1] = (row, 2 pair + 0, 1)     sums[2], [3] = (row + 8, 2 pair + 0, 1)
#ifdef __CUDACC__
template <class T>
__device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<__half>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
// On the host each sum is rounded once; the order in which a device adds is its own.
template <class T>
void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         std::source_location place = std::source_location::current()) {
    struct Lane {
        float* sums;
        T a[4][2], b[2][2];
    };
    Lane mine = {sums, {}, {}};
    memcpy(mine.a, a, sizeof(a));
    memcpy(mine.b, b, sizeof(b));
    const auto combine = [](void* const payloads[32]) {
        const auto lane = [&](int row, int pair) { return static_cast<Lane*>(payloads[4 * row + pair]); };
        for (int m = 0; m < 16; ++m) {
            for (int n = 0; n < 8; ++n) {
                float& sum = lane(m % 8, n / 2)->sums[m / 8 * 2 + n % 2];
                double total = sum;
                for (int k = 0; k < 16; ++k) {
                    const int pair = k % 8 / 2, half = k / 8;
                    total += static_cast<double>(to_float(lane(m % 8, pair)->a[m / 8 + 2 * half][k % 2])) *
                             to_float(lane(n, pair)->b[half][k % 2]);
                }
                sum = static_cast<float>(total);
            }
        }
    };
    simt::meet_warp("mma", kAllLanes, &mine, combine, place);
}
#endif

}  // namespace demiurgic::cuda
