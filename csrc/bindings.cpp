#include "bindings.h"

#include <pybind11/stl.h>

#include <exception>

#include "generation_config.h"
#include "kernels/kernels.h"
#include "philox.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    using namespace demiurgic;
    using namespace pybind11::literals;
    m.doc() = "The C++ core of demiurgic.";
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const UnknownOption& error) {
            py::set_error(PyExc_TypeError, error.what());
        } catch (const WrongType& error) {
            py::set_error(PyExc_TypeError, error.what());
        }
    });
    bind_options(m);
    bind_model(m);
    bind_hooks(m);
    bind_texts(m);
    bind_engine(m);
    m.def("derive_seed", &derive_seed, "seed"_a, "i"_a, "The seed of the i-th of the rows that share `seed`.");
    m.def(
        "kernels_info",
        [](const std::string& device, bool exact) {
            return kernels_for(at::Device(device), at::kFloat, exact).implementations();
        },
        "device"_a, "exact"_a = true, "Which implementation serves each entry of the kernel table on a device.");
    m.def("isa_names", &isa_names,
          "The instruction sets that this build has CPU kernels for and this CPU can run, fastest first; "
          "DEMIURGIC_KERNELS forces one.");
}
