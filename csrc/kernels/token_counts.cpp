#include "kernels/token_counts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "kernels/transfer.h"

namespace demiurgic {

TokenCounts::TokenCounts(const std::vector<LoopRow>& rows, int64_t vocab, at::Device device,
                         std::vector<at::Tensor>& sent) {
    if (std::none_of(rows.begin(), rows.end(), [](const LoopRow& row) { return row.needs_counts; })) return;
    size_t longest = 0;
    for (const LoopRow& row : rows) longest = std::max(longest, static_cast<size_t>(row.num_tokens));
    const size_t num_rows = rows.size(), num_places = num_rows * longest;
    std::vector<int64_t> ids(num_places);        // [R, longest], filled up with 0
    std::vector<float> weights(2 * num_places);  // [2, R, longest], 0 where nothing is counted
    std::vector<float> penalties;                // [3, R]
    for (size_t i = 0; i < num_rows; ++i) {
        const LoopRow& row = rows[i];
        if (!row.needs_counts) continue;
        const size_t first = i * longest, end = first + static_cast<size_t>(row.num_tokens);
        std::copy_n(row.tokens, row.num_tokens, ids.begin() + static_cast<int64_t>(first));
        std::fill(weights.begin() + static_cast<int64_t>(first), weights.begin() + static_cast<int64_t>(end), 1.0f);
        std::fill(weights.begin() + static_cast<int64_t>(num_places + first) + row.first_counted,
                  weights.begin() + static_cast<int64_t>(num_places + end), 1.0f);
    }
    for (float StepSampling::* penalty :
         {&StepSampling::repetition, &StepSampling::frequency, &StepSampling::presence}) {
        for (const LoopRow& row : rows) penalties.push_back(row.options.*penalty);
    }
    at::Tensor tokens = tensor_of(ids, at::kLong), counted = tensor_of(weights, at::kFloat);
    at::Tensor options = tensor_of(penalties, at::kFloat);
    sent.push_back(move_together({&tokens, &counted, &options}, device, /*non_blocking=*/true));
    const int64_t r = static_cast<int64_t>(num_rows);
    options = options.view({3, r, 1});
    repetition_ = options.select(0, 0);
    frequency_ = options.select(0, 1);
    presence_ = options.select(0, 2);
    counts_ = at::zeros({2, r, vocab}, counted.options());
    counts_.scatter_add_(2, tokens.view({1, r, -1}).expand({2, -1, -1}), counted.view({2, r, -1}));
}

void TokenCounts::add(const at::Tensor& tokens) {
    if (!counts_.defined()) return;
    const at::Tensor index = tokens.view({1, -1, 1}).expand({2, -1, -1});
    counts_.scatter_add_(2, index, at::full(index.sizes(), 1.0f, counts_.options()));
}

void TokenCounts::keep(const at::Tensor& rows) {
    if (!counts_.defined()) return;
    counts_ = counts_.index_select(1, rows);
    for (at::Tensor* penalty : {&repetition_, &frequency_, &presence_}) *penalty = penalty->index_select(0, rows);
}

at::Tensor TokenCounts::penalise(const at::Tensor& logits) const {
    if (!counts_.defined()) return logits;
    const at::Tensor in_context = counts_.select(0, 0) > 0, counted = counts_.select(0, 1);
    const at::Tensor repeated = at::where(logits < 0, logits * repetition_, logits / repetition_);
    return at::where(in_context, repeated, logits) - counted * frequency_ - (counted > 0) * presence_;
}

}  // namespace demiurgic
