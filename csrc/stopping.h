#pragma once

#include <optional>
#include <string>
#include <variant>

#include "sequence.h"

namespace demiurgic {

// Why the sequence ends with its last token, or none. In this order: a match of `stop` or `stop_at`, EOS ids, stop ids, a
// repetition, the length. A scored row ends, by its length, once all that it looks at has been computed.
FinishReason reason_to_stop(const Sequence& sequence);

// Why a sequence ends that has to end now, for `reason`: by a match instead, where there is one that waited for a longer text.
FinishReason reason_to_end(const Sequence& sequence, FinishReason reason);

// Takes back what of a sequence that ends for this reason is not to be returned: all from a match on, and the copies of a
// cycle but the first where trim_repetition asks for it.
void trim(Sequence& sequence, FinishReason reason);

// What has stopped a sequence that has ended with the reason stop: a string of `stop`, the value of `stop_at`, or an id
// of stop_token_ids; else nothing.
using StoppedBy = std::optional<std::variant<std::string, int64_t>>;
StoppedBy stopped_by(const Sequence& sequence);

}  // namespace demiurgic
