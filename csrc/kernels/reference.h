#pragma once

#include "kernels/kernels.h"

namespace demiurgic {

// The entry `sample` of the reference table, in a file of its own.
void reference_sample(Context&, const SampleArgs& args);

}  // namespace demiurgic
