#include "batch.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "kernels/transfer.h"

namespace demiurgic {

namespace {

// Of the first `count` blocks.
std::vector<BlockRun> runs_of(const std::vector<int32_t>& blocks, int64_t count) {
    std::vector<BlockRun> runs;
    for (int64_t i = 0; i < count; ++i) {
        if (runs.empty() || blocks[i] != runs.back().first + runs.back().count) runs.push_back({blocks[i], 0});
        ++runs.back().count;
    }
    return runs;
}

}  // namespace

Batch::Batch(const std::vector<Work>& work, int64_t block_size, at::Device device, bool non_blocking) {
    std::vector<int64_t> token_ids, position_ids, slot_ids, sampled_from, followed, scored_ids;
    size_t most_blocks = 1;
    for (const auto& [sequence, start, count, drafts] : work) {
        const int64_t end = start + count, past_drafts = end + static_cast<int64_t>(drafts.size());
        rows.push_back({static_cast<int64_t>(token_ids.size()), past_drafts - start, past_drafts});
        block_runs.push_back(runs_of(sequence->blocks, (past_drafts + block_size - 1) / block_size));
        if (end == sequence->size()) {
            sampled.push_back({sequence, static_cast<size_t>(end), static_cast<int64_t>(sampled_from.size()), drafts});
            for (int64_t position = end - 1; position < past_drafts; ++position) {
                sampled_from.push_back(static_cast<int64_t>(token_ids.size()) + position - start);
            }
        }
        const Sequence::Span unscored = sequence->unscored(start, end);
        if (unscored.count > 0) scored.push_back({sequence, unscored});
        for (int64_t position = start; position < past_drafts; ++position) {
            if (position >= unscored.first && position < unscored.first + unscored.count) {
                followed.push_back(static_cast<int64_t>(token_ids.size()));
                scored_ids.push_back(sequence->tokens[position + 1]);
            }
            token_ids.push_back(position < end ? sequence->tokens[position] : drafts[position - end]);
            position_ids.push_back(position);
            slot_ids.push_back(sequence->blocks[position / block_size] * block_size + position % block_size);
        }
        most_blocks = std::max(most_blocks, sequence->blocks.size());
    }
    sampled_from.insert(sampled_from.end(), followed.begin(), followed.end());
    all_logits = sampled_from.size() == token_ids.size() && std::is_sorted(sampled_from.begin(), sampled_from.end());
    std::vector<int64_t> all;  // numbers of every tensor, so that they go to the device in one copy
    for (const std::vector<int64_t>* part : {&token_ids, &position_ids, &slot_ids, &sampled_from, &scored_ids}) {
        all.insert(all.end(), part->begin(), part->end());
    }
    for (const Work& part : work) {
        const std::vector<int32_t>& blocks = part.sequence->blocks;
        all.insert(all.end(), blocks.begin(), blocks.end());
        all.resize(all.size() + most_blocks - blocks.size(), 0);
    }
    const at::AutoDispatchBelowADInplaceOrView no_bookkeeping;  // of autograd, in making views
    on_host = tensor_of(all, at::kLong);
    const at::Tensor packed = on_host.to(device, non_blocking);
    const auto size = [](const auto& part) { return static_cast<int64_t>(part.size()); };
    const int64_t num_rows = size(work), num_blocks = static_cast<int64_t>(most_blocks);
    std::vector<at::Tensor> parts =
        packed.split_with_sizes({size(token_ids), size(position_ids), size(slot_ids), size(sampled_from),
                                 size(scored_ids), num_rows * num_blocks});
    tokens = std::move(parts[0]);
    positions = std::move(parts[1]);
    slots = std::move(parts[2]);
    logit_rows = std::move(parts[3]);
    scored_tokens = std::move(parts[4]);
    block_table = parts[5].view({num_rows, num_blocks});
}

}  // namespace demiurgic
