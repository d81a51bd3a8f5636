#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "batch.h"

namespace demiurgic {

// The sampling of one step, position by position. In the first round each sequence gives a token from the logits of its
// last one. Where that token is the draft that went through the decoder behind it, the draft's logits are those of the
// next position, and the sequence takes part in another round; until a draft is refused, the drafts end or the sequence
// does. What is computed of refused drafts is simply overwritten by a later step.
class Rounds {
public:
    explicit Rounds(const Batch& batch) : batch_(batch), live_(batch.sampled) { name_sequences(); }

    // Those that give a token in this round, in the order of the batch.
    const std::vector<Sequence*>& sequences() const { return sequences_; }

    // Their rows [live, V] of the step's logits [R, V]: without a copy where they follow each other.
    at::Tensor logits(const at::Tensor& all) const;

    // To be called when each of them has its token, or its end. False where nobody takes part in another round.
    bool next();

private:
    void name_sequences();

    const Batch& batch_;
    std::vector<SampledRow> live_;
    std::vector<Sequence*> sequences_;  // of live_
    size_t number_ = 0;                 // of this round
};

}  // namespace demiurgic
