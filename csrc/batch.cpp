#include "batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

namespace demiurgic {

namespace {

at::Tensor on_device(const std::vector<int64_t>& values, at::Device device) {
    at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kLong));
    std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(int64_t));
    return tensor.to(device);
}

}  // namespace

Batch::Batch(const std::vector<Work>& work, int64_t block_size, at::Device device) {
    std::vector<int64_t> token_ids, position_ids, slot_ids, last_tokens, followed, scored_ids;
    size_t most_blocks = 1;
    for (const auto& [sequence, start, count] : work) {
        rows.push_back({static_cast<int64_t>(token_ids.size()), count, start + count});
        const Sequence::Span unscored = sequence->unscored(start, start + count);
        if (unscored.count > 0) scored.push_back({sequence, unscored});
        for (int64_t position = start; position < start + count; ++position) {
            if (position >= unscored.first && position < unscored.first + unscored.count) {
                followed.push_back(static_cast<int64_t>(token_ids.size()));
                scored_ids.push_back(sequence->tokens[position + 1]);
            }
            token_ids.push_back(sequence->tokens[position]);
            position_ids.push_back(position);
            slot_ids.push_back(sequence->blocks[position / block_size] * block_size + position % block_size);
        }
        if (start + count == sequence->size()) {
            sampled.push_back(sequence);
            last_tokens.push_back(static_cast<int64_t>(token_ids.size()) - 1);
        }
        most_blocks = std::max(most_blocks, sequence->blocks.size());
    }
    tokens = on_device(token_ids, device);
    positions = on_device(position_ids, device);
    slots = on_device(slot_ids, device);
    last_tokens.insert(last_tokens.end(), followed.begin(), followed.end());
    logit_rows = on_device(last_tokens, device);
    scored_tokens = on_device(scored_ids, device);

    const int64_t num_rows = static_cast<int64_t>(rows.size());
    block_table = at::zeros({num_rows, static_cast<int64_t>(most_blocks)}, at::TensorOptions().dtype(at::kLong));
    for (int64_t i = 0; i < num_rows; ++i) {
        const std::vector<int32_t>& blocks = work[i].sequence->blocks;
        std::copy(blocks.begin(), blocks.end(), block_table.data_ptr<int64_t>() + i * most_blocks);
    }
    block_table = block_table.to(device);
}

}  // namespace demiurgic
