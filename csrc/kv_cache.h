#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kv_blocks.h"
#include "weights.h"

namespace demiurgic {

// Keys (rotated) and values of all layers, in blocks: [blocks, kv_heads, block_size, head_dim] a layer.
class KVCache {
public:
    KVCache(const Weights& weights, int64_t block_size, CacheLayout layout);

    // Memory of one block over all layers, in bytes.
    int64_t block_bytes() const { return block_bytes_; }
    int64_t num_blocks() const { return num_blocks_; }

    // Makes room for `num_blocks` and keeps what is there. Throws where the memory cannot be had; what is there stays.
    void grow(int64_t num_blocks);

    void copy(const std::vector<BlockCopy>& copies);

    // Gives all memory back.
    void clear();

    // The keys and values of positions 0 to T - 1, which are in the blocks of `table`: [layers, kv_heads, T, head_dim]
    // each, whatever the order inside the blocks is. Layers of different shapes cannot be put together; ATen throws.
    struct Content {
        at::Tensor keys, values;
    };
    Content read(const std::vector<int32_t>& table, int64_t num_tokens) const;

    // The inverse of read. `content` is of the cache's dtype, on any device.
    void write(const std::vector<int32_t>& table, const Content& content);

    std::vector<at::Tensor> keys, values;  // by layer

private:
    at::Tensor empty_keys(int64_t num_blocks, const LayerConfig& layer) const;
    at::Tensor empty_values(int64_t num_blocks, const LayerConfig& layer) const;  // and keys that lie as they do
    at::Tensor on_device(const std::vector<int32_t>& blocks) const;

    std::vector<LayerConfig> layers_;
    at::TensorOptions options_;
    CacheLayout layout_;
    int64_t block_size_;
    int64_t block_bytes_ = 0;
    int64_t num_blocks_ = 0;
};

}  // namespace demiurgic
