#include "rounds.h"

#include <ATen/ops/tensor.h>

namespace demiurgic {

void Rounds::name_sequences() {
    sequences_.clear();
    for (const SampledRow& row : live_) sequences_.push_back(row.sequence);
}

at::Tensor Rounds::logits(const at::Tensor& all) const {
    std::vector<int64_t> rows;
    for (const SampledRow& row : live_) rows.push_back(row.first_logits + static_cast<int64_t>(number_));
    const int64_t count = static_cast<int64_t>(rows.size());
    if (rows.back() - rows.front() == count - 1) return all.narrow(0, rows.front(), count);
    return all.index_select(0, at::tensor(rows).to(all.device()));
}

bool Rounds::next() {
    const size_t number = number_++;
    std::erase_if(live_, [number](const SampledRow& row) {
        return row.sequence->finished() || number >= row.drafts.size() ||
               row.sequence->tokens.back() != row.drafts[number];
    });
    name_sequences();
    return !live_.empty();
}

}  // namespace demiurgic
