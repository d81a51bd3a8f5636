#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device.cuh"

// What the threads of a block find together about n items, without a sort: sums of integers, a threshold, a place. Integer
// sums do not depend on order, so nothing here depends on the number of threads. A block has whole warps, 2 to 32.
namespace demiurgic::cuda {

// The sum that a descending order of items reaches (find_cut).
struct Cut {
    uint32_t rank;   // the smallest rank such that all items of it and of smaller ones weigh the target or more
    int64_t before;  // what all of smaller ranks weigh: less than the target
};

// Where a running sum passes a number (find_place).
struct Place {
    int index;
    int64_t total;  // of all items
};

class Block {
public:
    static constexpr int kDigits = 256;

    // Shared memory of the block.
    struct Memory {
        int64_t of_warp[32];
        uint32_t low[kDigits], high[kDigits];  // a sum of 64 bits in two halves: shared memory adds 32 bits at once
        Cut cut;
    };

    __device__ explicit Block(Memory& memory) : m(memory) {}

    static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
    static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
    static __device__ int num_warps() { return static_cast<int>(blockDim.x) / 32; }

    // f(i) for each of n items by one thread. A warp takes consecutive items, its lanes 32 at a time.
    template <class F>
    __device__ void for_each(int n, F f) const {
        for (int i = begin_of(n, warp()) + lane(); i < begin_of(n, warp() + 1); i += 32) f(i);
    }

    // The first of the items of one warp: as many for each warp, in whole groups of 32.
    static __device__ int begin_of(int n, int of_warp) {
        const int each = (n + num_warps() * 32 - 1) / (num_warps() * 32) * 32;
        return min(n, of_warp * each);
    }

    // Of all threads' x by an operation in which order does not matter. `none` changes nothing. All threads get it.
    template <class T, class Combine>
    __device__ T reduce(T x, T none, Combine combine) {
        T* of_warp = reinterpret_cast<T*>(m.of_warp);
        x = reduce_warp(x, combine);
        if (lane() == 0) of_warp[warp()] = x;
        __syncthreads();
        x = reduce_warp(lane() < num_warps() ? of_warp[lane()] : none, combine);
        __syncthreads();  // before the next one writes
        return x;
    }
    __device__ int64_t sum(int64_t x) {
        return reduce(x, int64_t{0}, [](int64_t a, int64_t b) { return a + b; });
    }
    __device__ float largest(float x) {
        return reduce(x, -INFINITY, [](float a, float b) { return a > b ? a : b; });
    }
    __device__ int smallest(int x) {
        return reduce(x, INT32_MAX, [](int a, int b) { return min(a, b); });
    }

    // Where the n items in ascending order of rank(i) reach `target`; weight(i) >= 0, their sum is `target` or more, and
    // 1 <= target. By digits of the rank, the most significant first: each round weighs the digits, finds the one in which
    // the target is reached, and goes on with the items that have it.
    template <class Rank, class Weight>
    __device__ Cut find_cut(int n, Rank rank, Weight weight, int64_t target) {
        uint32_t most = 0;
        for_each(n, [&](int i) {
            if (weight(i) > 0) most = max(most, rank(i));
        });
        most = reduce(most, uint32_t{0}, [](uint32_t a, uint32_t b) { return max(a, b); });
        Cut cut = {0, 0};
        int known = 32 - __clz(static_cast<int>(most));  // the bits from here on are known: the others are 0
        do {
            const int shift = max(known - 8, 0);
            for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += static_cast<int>(blockDim.x)) {
                m.low[i] = m.high[i] = 0;
            }
            __syncthreads();
            for_each(n, [&](int i) {
                const uint32_t r = rank(i);
                if (static_cast<uint64_t>(r) >> known != static_cast<uint64_t>(cut.rank) >> known) return;
                add(r >> shift & ((1u << (known - shift)) - 1), weight(i));
            });
            __syncthreads();
            if (warp() == 0) find_digit(cut, target, shift);
            __syncthreads();
            cut = m.cut;
            known = shift;
        } while (known > 0);
        return cut;
    }

    // The first of n items at which the sum of weight(i) >= 0 is above left(total), which is 0 or more and less than the
    // total. By halving, so to speak: into as many parts as there are warps.
    template <class Weight, class Left>
    __device__ Place find_place(int n, Weight weight, Left left_of) {
        int begin = 0, end = n;
        int64_t total = -1, left = 0;
        do {
            const int each = (end - begin + num_warps() - 1) / num_warps();
            const int own_begin = min(end, begin + warp() * each), own_end = min(end, own_begin + each);
            int64_t sum = 0;
            for (int i = own_begin + lane(); i < own_end; i += 32) sum += weight(i);
            sum = reduce_warp(sum, [](int64_t a, int64_t b) { return a + b; });
            if (lane() == 0) m.of_warp[warp()] = sum;
            __syncthreads();
            const int64_t of_part = lane() < num_warps() ? m.of_warp[lane()] : 0, up_to = scan_warp(of_part);
            if (total < 0) {
                total = __shfl_sync(kAllLanes, up_to, 31);
                left = left_of(total);
            }
            const int part = first_lane(up_to > left);
            left -= __shfl_sync(kAllLanes, up_to - of_part, part);
            begin = begin + part * each;
            end = min(end, begin + each);
            __syncthreads();  // before the next round writes
        } while (end - begin > 32);
        const int64_t up_to = scan_warp(begin + lane() < end ? weight(begin + lane()) : 0);
        return {begin + first_lane(up_to > left), total};
    }

    // put(i, place) for each of n items that `stays`, place counting them in their order, where there are not more than
    // `most`; else nothing is put. Returns how many there are.
    template <class Stays, class Put>
    __device__ int collect(int n, Stays stays, int most, Put put) {
        int64_t own = 0;
        for_each(n, [&](int i) { own += stays(i); });
        own = reduce_warp(own, [](int64_t a, int64_t b) { return a + b; });
        if (lane() == 0) m.of_warp[warp()] = own;
        __syncthreads();
        const int64_t of_part = lane() < num_warps() ? m.of_warp[lane()] : 0, up_to = scan_warp(of_part);
        const int num = static_cast<int>(__shfl_sync(kAllLanes, up_to, 31));
        int place = static_cast<int>(__shfl_sync(kAllLanes, up_to - of_part, warp()));
        const int end = begin_of(n, warp() + 1);
        for (int first = begin_of(n, warp()); num <= most && first < end; first += 32) {
            const int i = first + lane();
            const bool stay = i < end && stays(i);
            const uint32_t all = __ballot_sync(kAllLanes, stay);
            if (stay) put(i, place + __popc(all & ((1u << lane()) - 1)));
            place += __popc(all);
        }
        __syncthreads();
        return num;
    }

private:
    template <class T, class Combine>
    static __device__ T reduce_warp(T x, Combine combine) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
        return x;
    }

    // The sum of x of this lane and those before.
    static __device__ int64_t scan_warp(int64_t x) {
#pragma unroll
        for (unsigned distance = 1; distance < 32; distance *= 2) {
            const int64_t before = __shfl_up_sync(kAllLanes, x, distance);
            if (lane() >= static_cast<int>(distance)) x += before;
        }
        return x;
    }

    static __device__ int first_lane(bool holds) {
        return __ffs(static_cast<int>(__ballot_sync(kAllLanes, holds))) - 1;
    }

    __device__ void add(uint32_t digit, int64_t weight) {
        if (weight == 0) return;
        const uint32_t low = static_cast<uint32_t>(weight), before = atomicAdd(&m.low[digit], low);
        const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before);
        if (high > 0) atomicAdd(&m.high[digit], high);
    }

    __device__ int64_t weight_of(int digit) const { return int64_t{m.high[digit]} << 32 | m.low[digit]; }

    // By one warp: the digit in which what `cut` has before reaches the target.
    __device__ void find_digit(Cut cut, int64_t target, int shift) {
        constexpr int each = kDigits / 32;
        int64_t own = 0;
        for (int i = 0; i < each; ++i) own += weight_of(lane() * each + i);
        const int64_t before = cut.before + scan_warp(own) - own;
        if (lane() != first_lane(before + own >= target)) return;
        cut.before = before;
        int digit = lane() * each;
        while (cut.before + weight_of(digit) < target) cut.before += weight_of(digit++);
        cut.rank |= static_cast<uint32_t>(digit) << shift;
        m.cut = cut;
    }

    Memory& m;
};

}  // namespace demiurgic::cuda
