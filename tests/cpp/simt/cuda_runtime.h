#pragma once

// What our kernels use of CUDA, on the host: see simt.h. Names and meanings are CUDA's.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <source_location>
#include <type_traits>
#include <utility>

#include "simt.h"

// --- the language ------------------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // blocks run one after another
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- threads that meet -------------------------------------------------------------------------------------------------
#define SIMT_PLACE std::source_location place = std::source_location::current()

inline void __syncthreads(SIMT_PLACE) { simt::meet_block("__syncthreads", place); }
inline void __syncwarp(unsigned mask = 0xffffffff, SIMT_PLACE) {
    simt::meet_warp("__syncwarp", mask, &mask, [](void* const*) {}, place);
}

namespace simt {

template <class T>
struct Shuffle {
    T value;
    unsigned from;  // lane
    T result;
};

// Each lane gets the value of the lane that it names.
template <class T>
T shuffle(const char* name, unsigned mask, T value, unsigned from, std::source_location place) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    Shuffle<T> mine{value, from, value};
    const auto combine = [](void* const payloads[32]) {
        for (int i = 0; i < 32; ++i) {
            auto* lane = static_cast<Shuffle<T>*>(payloads[i]);
            if (!lane) continue;
            const auto* other = static_cast<Shuffle<T>*>(payloads[lane->from]);
            if (!other) throw std::runtime_error("a shuffle reads a lane that its mask leaves out");
            lane->result = other->value;
        }
    };
    meet_warp(name, mask, &mine, combine, place);
    return mine.result;
}

struct Vote {
    bool value;
    unsigned result;
};

inline unsigned ballot(const char* name, unsigned mask, bool value, std::source_location place) {
    Vote mine{value, 0};
    const auto combine = [](void* const payloads[32]) {
        unsigned result = 0;
        for (int i = 0; i < 32; ++i) {
            if (payloads[i] && static_cast<Vote*>(payloads[i])->value) result |= 1u << i;
        }
        for (int i = 0; i < 32; ++i) {
            if (payloads[i]) static_cast<Vote*>(payloads[i])->result = result;
        }
    };
    meet_warp(name, mask, &mine, combine, place);
    return mine.result;
}

}  // namespace simt

// Lanes are dealt out in segments of `width`, as the device does.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, SIMT_PLACE) {
    const int segment = static_cast<int>(simt::lane()) / width * width;
    return simt::shuffle("__shfl_sync", mask, value, segment + (from & (width - 1)), place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_PLACE) {
    const int lane = static_cast<int>(simt::lane()), other = lane ^ bits;
    return simt::shuffle("__shfl_xor_sync", mask, value, other < (lane / width + 1) * width ? other : lane, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SIMT_PLACE) {
    const int lane = static_cast<int>(simt::lane()), other = lane + static_cast<int>(by);
    return simt::shuffle("__shfl_down_sync", mask, value, other < (lane / width + 1) * width ? other : lane, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SIMT_PLACE) {
    const int lane = static_cast<int>(simt::lane()), other = lane - static_cast<int>(by);
    return simt::shuffle("__shfl_up_sync", mask, value, other >= lane / width * width ? other : lane, place);
}
inline unsigned __ballot_sync(unsigned mask, int value, SIMT_PLACE) {
    return simt::ballot("__ballot_sync", mask, value != 0, place);
}
inline int __any_sync(unsigned mask, int value, SIMT_PLACE) {
    return simt::ballot("__any_sync", mask, value != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int value, SIMT_PLACE) {
    return simt::ballot("__all_sync", mask, value != 0, place) == mask;
}
inline unsigned __activemask() = delete;  // what it gives is the device's business; name the lanes instead

// --- memory ------------------------------------------------------------------------------------------------------------
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T __ldcs(const T* from) {
    return *from;
}
template <class T>
T __ldcg(const T* from) {
    return *from;
}
template <class T>
void __stcs(T* to, T value) {
    *to = value;
}
template <class T>
void __stcg(T* to, T value) {
    *to = value;
}

// Threads give way only where they meet, so each of these is whole.
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, value);
}
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, static_cast<T>(*at + value));
}
template <class T>
T atomicSub(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, static_cast<T>(*at - value));
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, std::max(*at, value));
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, std::min(*at, value));
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, *at | value);
}
template <class T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
    return std::exchange(*at, *at & value);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    return std::exchange(*at, *at == expected ? value : *at);
}
// Counts up to `last`, then begins at 0 again.
inline unsigned atomicInc(unsigned* at, unsigned last) { return std::exchange(*at, *at >= last ? 0 : *at + 1); }

// --- arithmetic --------------------------------------------------------------------------------------------------------
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

// Compiled with -ffp-contract=off: each is rounded once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1 / a; }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
// The device's are less exact. Macros, since the C library has functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __exp2f(x) exp2f(x)
#define __fdividef(a, b) ((a) / (b))

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline long long __float2ll_rd(float x) { return static_cast<long long>(std::floor(x)); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned __int128>(a) * b >> 64;
}

// --- launches ----------------------------------------------------------------------------------------------------------
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // a launch's own result tells
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument or configuration";
}

using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
    int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

// A kernel has to ask for more dynamic shared memory than 48 KiB less its static memory, which is not known here: 20 KiB is more
// than any of ours has. The most is that of sm_80, not sm_90's 227 KiB.
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
    int maxDynamicSharedSizeBytes;
};
namespace simt {
constexpr size_t static_shared_bytes = 20 << 10, unasked_shared_bytes = (48 << 10) - static_shared_bytes;
constexpr int most_shared_bytes = 163 << 10;
inline std::map<const void*, size_t> shared_bytes_of;  // kernels that asked
inline size_t allowed_shared_bytes(const void* kernel) {
    const auto asked = shared_bytes_of.find(kernel);
    return asked == shared_bytes_of.end() ? unasked_shared_bytes : asked->second;
}
}  // namespace simt
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = simt::most_shared_bytes;
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
    const size_t allowed = simt::allowed_shared_bytes(reinterpret_cast<const void*>(kernel));
    *attributes = {simt::static_shared_bytes, static_cast<int>(allowed)};
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || bytes > simt::most_shared_bytes) return cudaErrorInvalidValue;
    simt::shared_bytes_of[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const auto& [grid, block, shared_bytes, stream, attributes, num_attributes] = *config;
    if (shared_bytes > simt::allowed_shared_bytes(reinterpret_cast<const void*>(kernel))) return cudaErrorInvalidValue;
    const bool fits = grid.x > 0 && grid.x < 1u << 31 && grid.y > 0 && grid.y < 1u << 16 && grid.z > 0 &&
                      grid.z < 1u << 16 && block.x > 0 && block.y > 0 && block.z > 0 && block.z <= 64 &&
                      uint64_t{block.x} * block.y * block.z <= 1024;
    if (!fits) return cudaErrorInvalidConfiguration;
    // As a device has them: copies of the parameters' own types, one for each thread.
    simt::run({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
              [&] { kernel(static_cast<Parameters>(arguments)...); });
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
    std::memset(to, byte, count);
    return cudaSuccess;
}
