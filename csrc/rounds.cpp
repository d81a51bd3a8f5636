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
    std::vector<SampledRow> going_on;
    for (SampledRow& row : live_) {
        const std::vector<int64_t>& tokens = row.sequence->tokens;
        const size_t position = row.first_position + number_;  // of the token that this round gave
        const bool came =
            number_ < row.drafts.size() && position < tokens.size() && tokens[position] == row.drafts[number_];
        if (!came) continue;
        ++row.sequence->num_accepted;
        if (!row.sequence->finished()) going_on.push_back(std::move(row));
    }
    live_ = std::move(going_on);
    ++number_;
    name_sequences();
    return !live_.empty();
}

}  // namespace demiurgic
