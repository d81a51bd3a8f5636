#pragma once

#include "sequence.h"

namespace demiurgic {

// Why the sequence ends with its last token, or none. EOS and stop ids are looked at before the length. A scored row ends,
// by its length, once all that it looks at has been computed.
FinishReason reason_to_stop(const Sequence& sequence);

}  // namespace demiurgic
