#include "kv_cache.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <array>

#include "host_memory.h"

namespace demiurgic {

KVCache::KVCache(const Weights& weights, int64_t block_size, CacheLayout layout)
    : layers_(weights.config().layers),
      options_(weights.embedding.options()),
      layout_(layout),
      block_size_(block_size) {
    for (const LayerConfig& layer : layers_) {
        block_bytes_ += 2 * layer.num_kv_heads * block_size * layer.head_dim * weights.embedding.element_size();
    }
    keys.resize(layers_.size());
    values.resize(layers_.size());
}

// The CPU's kernels score as many positions at a time as a vector has lanes.
at::Tensor KVCache::empty_keys(int64_t num_blocks, const LayerConfig& layer) const {
    if (layout_ == CacheLayout::keys_by_coordinate) {
        return empty_of_kept_memory({num_blocks, layer.num_kv_heads, layer.head_dim, block_size_}, options_)
            .transpose(2, 3);
    }
    return empty_values(num_blocks, layer);
}

at::Tensor KVCache::empty_values(int64_t num_blocks, const LayerConfig& layer) const {
    if (layout_ == CacheLayout::by_head) {
        return empty_of_kept_memory({layer.num_kv_heads, num_blocks, block_size_, layer.head_dim}, options_)
            .transpose(0, 1);
    }
    return empty_of_kept_memory({num_blocks, layer.num_kv_heads, block_size_, layer.head_dim}, options_);
}

void KVCache::grow(int64_t num_blocks) {
    if (num_blocks <= num_blocks_) return;
    // One tensor at a time, so that old and new ones are not held side by side; after a failure some are larger than
    // they need be.
    for (size_t i = 0; i < layers_.size(); ++i) {
        for (at::Tensor* old : {&keys[i], &values[i]}) {
            at::Tensor grown =
                old == &keys[i] ? empty_keys(num_blocks, layers_[i]) : empty_values(num_blocks, layers_[i]);
            if (num_blocks_ > 0) grown.narrow(0, 0, num_blocks_).copy_(old->narrow(0, 0, num_blocks_));
            *old = std::move(grown);
        }
    }
    num_blocks_ = num_blocks;
}

void KVCache::clear() {
    for (std::vector<at::Tensor>* tensors : {&keys, &values}) tensors->assign(layers_.size(), at::Tensor());
    num_blocks_ = 0;
}

void KVCache::copy(const std::vector<BlockCopy>& copies) {
    for (const BlockCopy& block : copies) {
        for (size_t i = 0; i < layers_.size(); ++i) {
            keys[i].select(0, block.to).copy_(keys[i].select(0, block.from));
            values[i].select(0, block.to).copy_(values[i].select(0, block.from));
        }
    }
}

at::Tensor KVCache::on_device(const std::vector<int32_t>& blocks) const {
    at::Tensor indices = at::empty({static_cast<int64_t>(blocks.size())}, at::TensorOptions().dtype(at::kLong));
    std::copy(blocks.begin(), blocks.end(), indices.data_ptr<int64_t>());
    return indices.to(options_.device());
}

KVCache::Content KVCache::read(const std::vector<int32_t>& table, int64_t num_tokens) const {
    const at::Tensor blocks = on_device(table);
    const auto read_all = [&](const std::vector<at::Tensor>& tensors) {
        std::vector<at::Tensor> layers;
        for (const at::Tensor& tensor : tensors) {
            const at::Tensor read = tensor.index_select(0, blocks).transpose(0, 1);  // [kv_heads, n, block_size, d]
            layers.push_back(read.reshape({read.size(0), -1, read.size(3)}).narrow(1, 0, num_tokens));
        }
        return at::stack(layers);
    };
    return {read_all(keys), read_all(values)};
}

void KVCache::write(const std::vector<int32_t>& table, const Content& content) {
    const at::Tensor blocks = on_device(table);
    const int64_t num_blocks = blocks.size(0), missing = num_blocks * block_size_ - content.keys.size(2);
    for (auto [tensors, given] : {std::pair{&keys, &content.keys}, std::pair{&values, &content.values}}) {
        for (size_t i = 0; i < layers_.size(); ++i) {
            const at::Tensor layer = given->select(0, static_cast<int64_t>(i)).to(options_.device());
            const at::Tensor whole = at::constant_pad_nd(layer, std::array<int64_t, 4>{0, 0, 0, missing});
            (*tensors)[i].index_copy_(
                0, blocks, whole.view({whole.size(0), num_blocks, block_size_, whole.size(2)}).transpose(0, 1));
        }
    }
}

}  // namespace demiurgic
