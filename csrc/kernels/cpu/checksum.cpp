#include "kernels/cpu/checksum.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace demiurgic::cpu {

namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // what one thread takes at a time
constexpr int64_t kLanes = 8;                      // independent chains, so that the multiplier is always busy
constexpr int64_t kLineBytes = kLanes * static_cast<int64_t>(sizeof(uint64_t));

// One to one in `word` and in `sum`: a sum in which one word differs is another one, whatever follows.
uint64_t mixed(uint64_t sum, uint64_t word) {
    const uint64_t product = (sum ^ word) * 0x9e3779b97f4a7c15;
    return product ^ product >> 32;
}

uint64_t sum_of(const char* bytes, int64_t num_bytes) {
    std::array<uint64_t, kLanes> sums{1, 2, 3, 4, 5, 6, 7, 8}, words{};
    for (; num_bytes > 0; bytes += kLineBytes, num_bytes -= kLineBytes) {
        if (num_bytes < kLineBytes) words.fill(0);
        std::memcpy(words.data(), bytes, static_cast<size_t>(std::min(num_bytes, kLineBytes)));
        for (size_t i = 0; i < kLanes; ++i) sums[i] = mixed(sums[i], words[i]);
    }
    uint64_t sum = 0;
    for (const uint64_t lane : sums) sum = mixed(sum, lane);
    return sum;
}

}  // namespace

void checksum(Context&, const ChecksumArgs& args) {
    const at::Tensor tensor = args.tensor.contiguous();
    const char* bytes = static_cast<const char*>(tensor.const_data_ptr());
    const int64_t num_bytes = static_cast<int64_t>(tensor.nbytes());
    std::vector<uint64_t> sums(static_cast<size_t>((num_bytes + kPieceBytes - 1) / kPieceBytes));
    at::parallel_for(0, static_cast<int64_t>(sums.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * kPieceBytes;
            sums[static_cast<size_t>(i)] = sum_of(bytes + first, std::min(kPieceBytes, num_bytes - first));
        }
    });
    args.sum = static_cast<uint64_t>(num_bytes);
    for (const uint64_t sum : sums) args.sum = mixed(args.sum, sum);
}

}  // namespace demiurgic::cpu
