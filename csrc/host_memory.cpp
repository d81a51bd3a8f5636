#include "host_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <mutex>
#include <vector>

namespace demiurgic {

namespace {

constexpr size_t kLine = 64;
constexpr size_t kLeast = size_t{64} << 10;  // less is left to malloc
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kMost = 0;  // nothing is kept: what is freed is not to be touched, and bounds are those asked for
#else
constexpr size_t kMost = size_t{32} << 20;
#endif

struct Block {
    void* memory;
    size_t bytes;
};

// What was freed, the longest unused first.
class KeptBlocks {
public:
    // The smallest block of so many bytes; none where all are more than twice as large. `memory` is nullptr where the
    // system has no more to give.
    Block take(size_t bytes) {
        const std::lock_guard lock(mutex_);
        auto best = blocks_.end();
        for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
            const bool fits = block->bytes >= bytes && block->bytes / 2 <= bytes;
            if (fits && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
        }
        if (best == blocks_.end()) return allocate(bytes);
        const Block found = *best;
        blocks_.erase(best);
        bytes_ -= found.bytes;
        return found;
    }

    void keep(Block block) {
        const std::lock_guard lock(mutex_);
        blocks_.push_back(block);
        bytes_ += block.bytes;
        free_all_but(kMost);
    }

private:
    Block allocate(size_t bytes) {
        void* memory = std::aligned_alloc(kLine, bytes);
        if (!memory && !blocks_.empty()) {
            free_all_but(0);
            memory = std::aligned_alloc(kLine, bytes);
        }
        return {memory, bytes};
    }

    void free_all_but(size_t most) {
        auto block = blocks_.begin();
        for (; bytes_ > most; ++block) {
            std::free(block->memory);
            bytes_ -= block->bytes;
        }
        blocks_.erase(blocks_.begin(), block);
    }

    std::mutex mutex_;
    std::vector<Block> blocks_;
    size_t bytes_ = 0;  // of them all
};

KeptBlocks& kept_blocks() {
    static KeptBlocks& blocks = *new KeptBlocks;  // tensors may outlive what is destroyed at exit
    return blocks;
}

}  // namespace

at::Tensor empty_of_kept_memory(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
    if (!options.device().is_cpu() || bytes < kLeast) return at::empty(sizes, options);
    const Block block = kept_blocks().take((bytes + kLine - 1) / kLine * kLine);
    if (!block.memory) return at::empty(sizes, options);  // whose error is the one that callers know
    return at::from_blob(block.memory, sizes, [block](void*) { kept_blocks().keep(block); }, options);
}

}  // namespace demiurgic
