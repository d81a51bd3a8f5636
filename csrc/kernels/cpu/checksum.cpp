#include "kernels/cpu/checksum.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace demiurgic::cpu {

namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // what one thread takes at a time
constexpr int64_t kAhead = 512;                    // bytes: the CPU's own prefetching ends at each page of 4 KiB

using Words = uint64_t __attribute__((vector_size(16)));  // of any instruction set
constexpr size_t kChains = 8;                             // that do not wait for each other
constexpr int64_t kLineBytes = kChains * sizeof(Words);

// One to one in each word of both: a sum in which one word differs is another one, whatever follows. Shifts and
// additions, which every instruction set has for vectors of 64 bits, unlike products.
Words mixed(Words sums, Words words) {
    sums ^= words;
    sums += sums << 25;
    return sums ^ sums >> 27;
}

// The same for one word.
uint64_t mixed(uint64_t sum, uint64_t word) {
    const uint64_t product = (sum ^ word) * 0x9e3779b97f4a7c15;
    return product ^ product >> 32;
}

void add_line(std::array<Words, kChains>& sums, const char* line) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kChains; ++i) {
        Words words;
        std::memcpy(&words, line + i * sizeof words, sizeof words);
        sums[i] = mixed(sums[i], words);
    }
}

// `end` is the end of what may be read.
uint64_t sum_of(const char* bytes, const char* end) {
    std::array<Words, kChains> sums;
    for (size_t i = 0; i < kChains; ++i) sums[i] = Words{2 * i, 2 * i + 1};
    for (; end - bytes >= kLineBytes; bytes += kLineBytes) {
        for (int64_t i = 0; i < kLineBytes; i += 64) __builtin_prefetch(bytes + kAhead + i);
        add_line(sums, bytes);
    }
    std::array<char, kLineBytes> rest{};
    std::copy(bytes, end, rest.begin());
    add_line(sums, rest.data());
    uint64_t sum = 0;
    for (const Words& words : sums) sum = mixed(mixed(sum, words[0]), words[1]);
    return sum;
}

// A part of a tensor, and where its sum goes.
struct Piece {
    const char* begin;
    const char* end;
    size_t tensor;
    uint64_t sum = 0;
};

}  // namespace

void checksum(Context&, const ChecksumArgs& args) {
    std::vector<at::Tensor> tensors;  // copies of those that are not contiguous
    std::vector<Piece> pieces;
    for (const at::Tensor& tensor : args.tensors) {
        tensors.push_back(tensor.contiguous());
        const char* begin = static_cast<const char*>(tensors.back().const_data_ptr());
        const char* end = begin + tensors.back().nbytes();
        for (; begin < end; begin += kPieceBytes) {
            pieces.push_back({begin, begin + std::min(kPieceBytes, end - begin), tensors.size() - 1});
        }
        args.sums.push_back(tensors.back().nbytes());
    }
    at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            Piece& piece = pieces[static_cast<size_t>(i)];
            piece.sum = sum_of(piece.begin, piece.end);
        }
    });
    for (const Piece& piece : pieces) args.sums[piece.tensor] = mixed(args.sums[piece.tensor], piece.sum);
}

}  // namespace demiurgic::cpu
