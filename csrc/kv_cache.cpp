#include "kv_cache.h"

#include <ATen/ops/empty.h>

namespace demiurgic {

KVCache::KVCache(const Weights& weights, int64_t block_size)
    : layers_(weights.config().layers), options_(weights.embedding.options()), block_size_(block_size) {
    for (const LayerConfig& layer : layers_) {
        block_bytes_ += 2 * layer.num_kv_heads * block_size * layer.head_dim * weights.embedding.element_size();
    }
    keys.resize(layers_.size());
    values.resize(layers_.size());
}

// On the CPU the positions of a block are neighbours in memory: its kernels score as many at a time as a vector has lanes.
at::Tensor KVCache::empty_keys(int64_t num_blocks, const LayerConfig& layer) const {
    if (options_.device().is_cpu()) {
        return at::empty({num_blocks, layer.num_kv_heads, layer.head_dim, block_size_}, options_).transpose(2, 3);
    }
    return empty_values(num_blocks, layer);
}

at::Tensor KVCache::empty_values(int64_t num_blocks, const LayerConfig& layer) const {
    return at::empty({num_blocks, layer.num_kv_heads, block_size_, layer.head_dim}, options_);
}

void KVCache::grow(int64_t num_blocks) {
    if (num_blocks <= num_blocks_) return;
    std::vector<at::Tensor> grown_keys, grown_values;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const LayerConfig& layer = layers_[i];
        for (auto [old, grown] : {std::pair{&keys[i], &grown_keys}, std::pair{&values[i], &grown_values}}) {
            grown->push_back(grown == &grown_keys ? empty_keys(num_blocks, layer) : empty_values(num_blocks, layer));
            if (old->defined()) grown->back().narrow(0, 0, num_blocks_).copy_(*old);
        }
    }
    keys.swap(grown_keys);
    values.swap(grown_values);
    num_blocks_ = num_blocks;
}

void KVCache::copy(const std::vector<BlockCopy>& copies) {
    for (const BlockCopy& block : copies) {
        for (size_t i = 0; i < layers_.size(); ++i) {
            keys[i].select(0, block.to).copy_(keys[i].select(0, block.from));
            values[i].select(0, block.to).copy_(values[i].select(0, block.from));
        }
    }
}

}  // namespace demiurgic
