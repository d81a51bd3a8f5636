#pragma once

#include "kernels/kernels.h"

namespace demiurgic::cuda {

// The table's entry; what the kernels cannot take (a layout, a dtype, a head dimension) goes to the reference.
void attend(Context& context, const AttendArgs& args);

}  // namespace demiurgic::cuda
