#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

// How much memory key/value caches may take, in plain numbers, and what to do where it cannot be had.
namespace demiurgic {

// Most bytes of caches where `free` can still be had: nine tenths. The rest is for the tensors of a step and for whoever
// else works on the device, a trainer above all. On a GPU, whose libraries take workspaces and whose free memory lies in
// pieces, at least 512 MiB are left while that is less than half.
inline int64_t cache_budget(int64_t free, bool on_gpu) {
    constexpr int64_t least_left = int64_t{512} << 20;
    free = std::max<int64_t>(0, free);
    const int64_t share = free / 10 * 9;
    return on_gpu ? std::max(std::min(share, free - least_left), free / 2) : share;
}

// How many blocks to try for after `tried` could not be had; nullopt: there is no use in trying. `held` of them are there
// already, with fewer than `least` nothing could run.
inline std::optional<int64_t> fewer_blocks(int64_t tried, int64_t held, int64_t least) {
    if (tried <= std::max(held, least)) return std::nullopt;
    return std::max(least, held + (tried - held) / 2);
}

// Whether an error of torch's says so. Only CUDA's allocator throws a type of its own; MPS has two sentences, the second for a
// tensor that is larger than what Metal gives in one piece.
inline bool says_out_of_memory(std::string_view message) {
    for (const std::string_view words : {"out of memory", "Invalid buffer size", "can't allocate memory"}) {
        if (message.find(words) != std::string_view::npos) return true;
    }
    return false;
}

}  // namespace demiurgic
