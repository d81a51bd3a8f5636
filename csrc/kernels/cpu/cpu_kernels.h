#pragma once

#include <optional>

#include "kernels/kernels.h"

namespace demiurgic::cpu {

struct Isa;

// The fastest set that runs here, or the one of that name; null where there is none of that name that runs here.
const Isa* choose_isa(const std::optional<std::string>& name);

// Names of the sets that run here, fastest first.
std::vector<std::string> running_isas();

// The CPU's own kernels for weights of `dtype`; null for a dtype they do not have.
const Kernels* cpu_kernels(const Isa& isa, at::ScalarType dtype, const Kernels& reference);

}  // namespace demiurgic::cpu
