#include "stopping.h"

#include <algorithm>

namespace demiurgic {

namespace {

bool contains(const Ids& ids, int64_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

bool has_match(const Sequence& sequence) { return sequence.text && sequence.text->has_match(); }

bool repeats(const Sequence& sequence) {
    return sequence.repetition && sequence.repetition->period() > 0 &&
           sequence.num_generated() >= sequence.config->tokens_before_end(sequence.prompt_length);
}

FinishReason reason_in_tokens(const Sequence& sequence) {
    if (sequence.num_generated() > 0) {
        const int64_t last = sequence.tokens.back();
        if (contains(*sequence.config->eos_token_id, last)) return FinishReason::eos;
        if (contains(sequence.config->stop_token_ids, last)) return FinishReason::stop;
        if (repeats(sequence)) return FinishReason::repetition;
    }
    return sequence.size() >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

}  // namespace

FinishReason reason_to_end(const Sequence& sequence, FinishReason reason) {
    return has_match(sequence) ? FinishReason::stop : reason;
}

FinishReason reason_to_stop(const Sequence& sequence) {
    if (sequence.scored) {
        return sequence.num_cached == sequence.num_inputs() ? FinishReason::length : FinishReason::none;
    }
    if (sequence.text && sequence.text->ended()) return FinishReason::stop;
    const FinishReason reason = reason_in_tokens(sequence);
    // A match that had to wait for a longer text, because it lay inside of what might have become an earlier one.
    return reason != FinishReason::none ? reason_to_end(sequence, reason) : reason;
}

void trim(Sequence& sequence, FinishReason reason) {
    if (reason == FinishReason::stop && has_match(sequence)) sequence.keep(sequence.text->cut());
    if (reason != FinishReason::repetition || !sequence.config->trim_repetition) return;
    const int64_t kept = std::max(sequence.num_generated() - sequence.repetition->num_repeated(),
                                  sequence.config->tokens_before_end(sequence.prompt_length));
    if (sequence.text) sequence.text->keep(kept);
    sequence.keep(kept);
}

StoppedBy stopped_by(const Sequence& sequence) {
    if (sequence.finish_reason != FinishReason::stop) return {};
    if (!has_match(sequence)) {
        const int64_t last = sequence.tokens.back();
        return contains(sequence.config->stop_token_ids, last) ? StoppedBy(last) : std::nullopt;
    }
    const int64_t stop = sequence.text->matched_stop();
    return stop < 0 ? sequence.config->stop_at : sequence.config->stop[stop];
}

}  // namespace demiurgic
