#pragma once

namespace demiurgic {

// What the code of this build that runs on the current device was compiled for, whether machine code or PTX: 80, 90, ...; 0
// where there is none.
int code_for_current_device();

}  // namespace demiurgic
