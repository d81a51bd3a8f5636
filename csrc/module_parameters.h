#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace demiurgic {

// The parameters of the torch module `model` by name, as nn.Module.named_parameters gives them, but through the wrappers
// that torch.compile puts around inner modules. In C++, since every call asks, and a call of few tokens would wait.
// Throws py::value_error with the name of the part where a parameter is sharded or not dense, and where a module inside
// is of a class that is neither of the Python module `our_module` nor in the set `torch_classes`, has a forward hook, or
// a forward that was replaced.
pybind11::dict module_parameters(pybind11::handle model, const std::string& our_module, pybind11::handle torch_classes);

}  // namespace demiurgic
