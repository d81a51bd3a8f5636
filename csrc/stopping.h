#pragma once

#include <vector>

#include "sequence.h"

namespace demiurgic {

// Why the sequence ends with its last token, or none. EOS and stop ids are looked at before the length. A scored row ends,
// by its length, once all that it looks at has been computed.
FinishReason reason_to_stop(const Sequence& sequence);

// True while min_length or min_new_tokens forbids the next token to be an EOS or stop id.
bool end_is_forbidden(const Sequence& sequence);

// The tokens that would complete an n-gram that stands in the sequence already, n = no_repeat_ngram_size (1 or more).
// May name a token twice.
std::vector<int64_t> tokens_that_repeat_ngram(const Sequence& sequence);

}  // namespace demiurgic
