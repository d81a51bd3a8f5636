#pragma once

namespace demiurgic {

// Whether this build has machine code, or PTX to compile it from, for the device that is current.
bool has_code_for_current_device();

}  // namespace demiurgic
