// The emulator that runs the CUDA kernels on the host, and what the kernels take from device.cuh.

#include <cstring>
#include <memory>

#include "check.h"
#include "kernels/cuda/device.cuh"
#include "numbers.h"

namespace demiurgic::test {

namespace {

// Runs `kernel` and returns the sentence with which the emulator refuses it.
template <class... Parameters, class... Arguments>
std::string refusal(const cuda::LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    try {
        cuda::launch(shape, kernel, arguments...);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

void check_says(const std::string& sentence, const std::string& part,
                std::source_location place = std::source_location::current()) {
    check(sentence.find(part) != std::string::npos, "it says '" + sentence + "', not '" + part + "'", place);
}

__global__ void write_index(int* out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(thread);
}

void every_thread_of_every_block_runs() {
    const int threads = 5 * 3 * 2, blocks = 2 * 3 * 4;
    std::vector<int> out(threads * blocks, -1);
    check(cuda::launch({{2, 3, 4}, {5, 3, 2}}, write_index, out.data()) == cudaSuccess, "the launch");
    for (int i = 0; i < threads * blocks; ++i) check(out[i] == i % threads, "thread " + std::to_string(i));
}

__global__ void reverse(const int* in, int* out) {
    int* shared = cuda::dynamic_shared<int>();
    __shared__ int first;
    shared[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    if (threadIdx.x == blockDim.x - 1) first = shared[threadIdx.x];
    __syncthreads();
    const int mine = threadIdx.x == 0 ? first : shared[blockDim.x - 1 - threadIdx.x];
    out[blockIdx.x * blockDim.x + threadIdx.x] = mine;
}

void shared_memory_and_syncthreads() {
    std::vector<int> in, out(6 * 50);
    for (int i = 0; i < 6 * 50; ++i) in.push_back(i * i);
    for (const simt::Order order : {simt::Order::forward, simt::Order::backward}) {
        simt::order = order;
        check(cuda::launch({6, 50, 50 * sizeof(int)}, reverse, in.data(), out.data()) == cudaSuccess, "the launch");
        for (int i = 0; i < 6 * 50; ++i) check(out[i] == in[i / 50 * 50 + 49 - i % 50], "element " + std::to_string(i));
    }
    simt::order = simt::Order::forward;
}

__global__ void lanes(int* out, float* sum, unsigned* votes) {
    const int lane = static_cast<int>(threadIdx.x % 32), thread = static_cast<int>(threadIdx.x);
    out[thread * 5 + 0] = __shfl_xor_sync(cuda::kAllLanes, thread, 5);
    out[thread * 5 + 1] = __shfl_down_sync(cuda::kAllLanes, thread, 3);
    out[thread * 5 + 2] = __shfl_up_sync(cuda::kAllLanes, thread, 3);
    out[thread * 5 + 3] = __shfl_sync(cuda::kAllLanes, thread, lane + 7);
    out[thread * 5 + 4] = __shfl_xor_sync(cuda::kAllLanes, thread, 3, 8);
    sum[thread] = cuda::warp_sum(static_cast<float>(thread));
    votes[thread] = __ballot_sync(cuda::kAllLanes, lane % 3 == 0);
    // Half a warp for itself.
    if (lane < 16) votes[thread] ^= __ballot_sync(0xffff, lane == 2);
    __syncwarp();
}

void shuffles_votes_and_sums_of_a_warp() {
    std::vector<int> out(64 * 5);
    std::vector<float> sum(64);
    std::vector<unsigned> votes(64);
    check(cuda::launch({1, 64}, lanes, out.data(), sum.data(), votes.data()) == cudaSuccess, "the launch");
    unsigned thirds = 0;
    for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
    for (int i = 0; i < 64; ++i) {
        const int warp = i / 32 * 32, lane = i % 32;
        check(out[i * 5 + 0] == warp + (lane ^ 5), "xor");
        check(out[i * 5 + 1] == (lane + 3 < 32 ? i + 3 : i), "down");
        check(out[i * 5 + 2] == (lane >= 3 ? i - 3 : i), "up");
        check(out[i * 5 + 3] == warp + (lane + 7) % 32, "from a lane");
        check(out[i * 5 + 4] == (i ^ 3), "xor in eights");
        check(sum[i] == static_cast<float>(warp * 32 + 31 * 16), "the sum");
        check(votes[i] == (lane < 16 ? thirds ^ 4u : thirds), "the votes");
    }
}

__global__ void count(int* counter, unsigned* last_block, unsigned* tickets) {
    atomicAdd(counter, 2);
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(tickets, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) *last_block = blockIdx.x;
}

void atomics_and_the_last_block() {
    for (const simt::Order order : {simt::Order::forward, simt::Order::backward}) {
        simt::order = order;
        int counter = 0;
        unsigned last = 77, tickets = 0;
        check(cuda::launch({5, 96}, count, &counter, &last, &tickets) == cudaSuccess, "the launch");
        check(counter == 5 * 96 * 2 && last == (order == simt::Order::forward ? 4 : 0) && tickets == 5, "counts");
    }
    simt::order = simt::Order::forward;
}

template <class T>
__global__ void product(const T* a, const T* b, float* sums) {  // a [16, 16], b [8, 16]: its columns, sums [16, 8]
    const int row = static_cast<int>(threadIdx.x / 4), pair = static_cast<int>(threadIdx.x % 4);
    const auto two = [](const T* from) {
        uint32_t bits;
        memcpy(&bits, from, sizeof(bits));
        return bits;
    };
    const uint32_t of_a[4] = {two(a + row * 16 + pair * 2), two(a + (row + 8) * 16 + pair * 2),
                              two(a + row * 16 + pair * 2 + 8), two(a + (row + 8) * 16 + pair * 2 + 8)};
    const uint32_t of_b[2] = {two(b + row * 16 + pair * 2), two(b + row * 16 + pair * 2 + 8)};
    float mine[4] = {sums[row * 8 + pair * 2], sums[row * 8 + pair * 2 + 1], sums[(row + 8) * 8 + pair * 2],
                     sums[(row + 8) * 8 + pair * 2 + 1]};
    cuda::mma<T>(mine, of_a, of_b);
    for (int i = 0; i < 4; ++i) sums[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = mine[i];
}

template <class T>
void check_product(Type type) {
    Random random(7);
    Values a(type, 16 * 16), b(type, 8 * 16);
    std::vector<float> sums(16 * 8), oracle(16 * 8);
    for (int i = 0; i < 16 * 16; ++i) a.set(i, random.between(-1, 1));
    for (int i = 0; i < 8 * 16; ++i) b.set(i, random.between(-1, 1));
    for (int i = 0; i < 16 * 8; ++i) {
        double exact = sums[i] = static_cast<float>(random.between(-1, 1));
        for (int k = 0; k < 16; ++k) exact += a.at(i / 8 * 16 + k) * b.at(i % 8 * 16 + k);
        oracle[i] = static_cast<float>(exact);
    }
    check(cuda::launch({1, 32}, product<T>, static_cast<const T*>(a.data()), static_cast<const T*>(b.data()),
                       sums.data()) == cudaSuccess,
          "the launch");
    check(sums == oracle, std::string("mma of ") + name_of(type));
}

void products_of_tensor_cores() {
    check_product<__nv_bfloat16>(Type::bfloat16);
    check_product<__half>(Type::float16);
}

template <class T>
__global__ void widen_and_round(const T* in, T* out) {
    float values[cuda::kVector<T>];
    cuda::load_floats(in + threadIdx.x * cuda::kVector<T>, values);
    cuda::store_floats(out + threadIdx.x * cuda::kVector<T>, values);
}

void sixteen_bits_to_float_and_back() {
    for (const Type type : {Type::bfloat16, Type::float16}) {
        for (int bits = 0; bits < 65536; ++bits) {
            const double exact = decode(type, static_cast<uint16_t>(bits));
            const float wide = type == Type::bfloat16 ? cuda::to_float(__nv_bfloat16{static_cast<uint16_t>(bits)})
                                                      : cuda::to_float(__half{static_cast<uint16_t>(bits)});
            check(wide == exact || (std::isnan(wide) && std::isnan(exact)), "widened " + std::to_string(bits));
            if (std::isnan(exact)) continue;
            for (const float near : {wide, std::nextafter(wide, 1.0f), wide * 1.001f}) {
                if (std::isinf(near) && std::isfinite(wide)) continue;
                const uint16_t rounded = type == Type::bfloat16 ? cuda::from_float<__nv_bfloat16>(near).bits
                                                                : cuda::from_float<__half>(near).bits;
                check(rounded == (std::isinf(near) ? bits : format_of(type).encode(near)),
                      "rounded " + std::to_string(bits));
            }
        }
    }
    Values in(Type::bfloat16, 64), out(Type::bfloat16, 64);
    for (int i = 0; i < 64; ++i) in.set(i, i * 0.37);
    check(cuda::launch({1, 8}, widen_and_round<__nv_bfloat16>, static_cast<const __nv_bfloat16*>(in.data()),
                       static_cast<__nv_bfloat16*>(out.data())) == cudaSuccess,
          "the launch");
    check(in.halves == out.halves, "vectors");
}

__global__ void syncs_in_a_branch() {
    if (threadIdx.x < 40) __syncthreads();
}
__global__ void syncs_in_two_places() {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void shuffles_in_a_branch(int* out) {
    if (threadIdx.x < 20) out[threadIdx.x] = __shfl_xor_sync(cuda::kAllLanes, 1, 1);
    __syncthreads();
}
__global__ void leaves_itself_out() {
    if (threadIdx.x == 3) __syncwarp(1);
}
__global__ void forgets_to_sync(int* out) {
    __shared__ int shared[64];
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = shared[63 - threadIdx.x];
}

void what_would_hang_is_refused_in_a_sentence() {
    int out[64] = {};
    check_says(refusal({1, 64}, syncs_in_a_branch), "waits at __syncthreads, simt_test.cpp:");
    check_says(refusal({1, 64}, syncs_in_a_branch), "but thread (40, 0, 0) has returned");
    check_says(refusal({1, 64}, syncs_in_two_places), "but thread (40, 0, 0) waits at __syncthreads");
    check_says(refusal({1, 64}, shuffles_in_a_branch, out), "but thread (20, 0, 0) waits at __syncthreads");
    check_says(refusal({1, 40}, lanes, nullptr, nullptr, nullptr), "for lane 8 of a warp that is cut off");
    check_says(refusal({1, 32}, leaves_itself_out), "with a mask that leaves itself out");
    every_thread_of_every_block_runs();  // after a kernel that failed
}

void a_missing_sync_shows_in_one_of_the_orders() {
    int forward[64] = {}, backward[64] = {};
    cuda::launch({1, 64}, forgets_to_sync, forward);
    simt::order = simt::Order::backward;
    cuda::launch({1, 64}, forgets_to_sync, backward);
    simt::order = simt::Order::forward;
    check(std::memcmp(forward, backward, sizeof(forward)) != 0, "both orders give the same");
}

__global__ void does_nothing() {}

void launches_that_a_device_refuses() {
    check(cuda::launch({0, 32}, does_nothing) == cudaErrorInvalidConfiguration, "an empty grid");
    check(cuda::launch({1, 1025}, does_nothing) == cudaErrorInvalidConfiguration, "1025 threads");
    check(cuda::launch({{1, 65536}, 32}, does_nothing) == cudaErrorInvalidConfiguration, "65536 blocks in y");
    check(cuda::launch({1, 32, 100 << 10}, does_nothing) == cudaSuccess, "100 KiB of shared memory");
    check(cuda::launch({1, 32, 164 << 10}, does_nothing) == cudaErrorInvalidValue, "164 KiB of shared memory");
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = 1;
    config.dynamicSmemBytes = 49 << 10;
    check(cudaLaunchKernelEx(&config, every_thread_of_every_block_runs) == cudaErrorInvalidValue, "49 KiB, unasked");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"every thread of every block runs", every_thread_of_every_block_runs},
            {"shared memory and __syncthreads", shared_memory_and_syncthreads},
            {"shuffles, votes and sums of a warp", shuffles_votes_and_sums_of_a_warp},
            {"atomics and the last block", atomics_and_the_last_block},
            {"products of tensor cores", products_of_tensor_cores},
            {"16 bits to float and back", sixteen_bits_to_float_and_back},
            {"what would hang is refused in a sentence", what_would_hang_is_refused_in_a_sentence},
            {"a missing sync shows in one of the orders", a_missing_sync_shows_in_one_of_the_orders},
            {"launches that a device refuses", launches_that_a_device_refuses},
        },
        argc > 1 ? argv[1] : nullptr);
}
