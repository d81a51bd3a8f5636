#pragma once

// Runs CUDA kernels on the host, for tests: the .cu files themselves, compiled as C++ against the cuda_runtime.h beside
// this file. Blocks run one after another. The threads of a block are fibers of one OS thread: each runs until it meets the
// others (__syncthreads, a warp's shuffle), then the next one. What would hang or be undefined on a device, threads that
// wait for others that never come, is an exception with a sentence. It shows nothing of a device's speed, of the order of
// its memory accesses, or of what blocks that run at the same time do to each other.

#include <cstddef>
#include <functional>
#include <source_location>
#include <stdexcept>

namespace simt {

struct Index {
    unsigned x = 1, y = 1, z = 1;
};

// The order in which blocks, and the threads of one, get their turn. A result that depends on it misses a synchronisation.
enum class Order { forward, backward };
inline Order order = Order::forward;

inline int num_launches = 0;  // of kernels, so far

// Runs `thread` as every thread of every block. Each block gets `shared_bytes` of dynamic shared memory, full of NaN.
void run(Index grid, Index block, size_t shared_bytes, const std::function<void()>& thread);

// Of the block that runs.
void* dynamic_shared();

// Works on what the lanes of a warp brought to a collective; null where the mask leaves a lane out.
using Combine = void (*)(void* const payloads[32]);

// Waits until all lanes of `mask` have come here with the same `combine`, which has run when this returns.
void meet_warp(const char* name, unsigned mask, void* payload, Combine combine, std::source_location place);

// Waits until all threads of the block have come to this very place.
void meet_block(const char* name, std::source_location place);

// 0 to 31
unsigned lane();

}  // namespace simt
