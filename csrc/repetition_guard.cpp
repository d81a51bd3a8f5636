#include "repetition_guard.h"

#include <algorithm>

namespace demiurgic {

RepetitionGuard::RepetitionGuard(int64_t min_copies, int64_t min_tokens, int64_t most_tokens)
    : min_copies_(min_copies),
      min_tokens_(min_tokens),
      num_periods_(std::clamp<int64_t>(most_tokens / min_copies, 0, kLongestPeriod)) {}

void RepetitionGuard::begin() {
    tokens_.assign(num_periods_, -1);
    runs_.assign(num_periods_, 0);
    enough_.reserve(num_periods_);
    for (int64_t period = num_periods_; period >= 1; --period) {
        const int64_t enough = std::max((min_copies_ - 1) * period, min_tokens_ - period);
        enough_.push_back(static_cast<int32_t>(std::min<int64_t>(enough, INT32_MAX)));
    }
}

void RepetitionGuard::append(int64_t token) {
    if (tokens_.empty()) begin();
    const int32_t last = static_cast<int32_t>(token);
    const int32_t* before = tokens_.data() + (static_cast<int64_t>(tokens_.size()) - num_periods_);
    int32_t* runs = runs_.data();
    const int32_t* enough = enough_.data();
    int32_t found = 0;
    for (int64_t i = 0; i < num_periods_; ++i) {  // without branches, so that the compiler makes vectors of it
        const int32_t run = before[i] == last ? runs[i] + 1 : 0;
        runs[i] = run;
        found |= run >= enough[i];
    }
    tokens_.push_back(last);
    period_ = 0;
    for (int64_t period = 1; found && period_ == 0; ++period) {
        if (runs_[num_periods_ - period] >= enough_[num_periods_ - period]) period_ = period;
    }
}

int64_t RepetitionGuard::num_repeated() const { return period_ == 0 ? 0 : runs_[num_periods_ - period_]; }

int64_t RepetitionGuard::longest_run() const {
    return runs_.empty() ? 0 : *std::max_element(runs_.begin(), runs_.end());
}

}  // namespace demiurgic
