#include "stopping.h"

#include <algorithm>

namespace demiurgic {

namespace {

bool contains(const Ids& ids, int64_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

}  // namespace

FinishReason reason_to_stop(const Sequence& sequence) {
    if (sequence.scored) {
        return sequence.num_cached == sequence.num_inputs() ? FinishReason::length : FinishReason::none;
    }
    if (sequence.num_generated() > 0) {
        const int64_t last = sequence.tokens.back();
        if (contains(*sequence.config->eos_token_id, last)) return FinishReason::eos;
        if (contains(sequence.config->stop_token_ids, last)) return FinishReason::stop;
    }
    return sequence.size() >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

}  // namespace demiurgic
