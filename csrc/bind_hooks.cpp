#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings.h"
#include "hooks.h"

namespace py = pybind11;

namespace demiurgic {
namespace {

using namespace pybind11::literals;

// A method of demiurgic.hooks.Hooks. Called, it takes the GIL; it may be called on any thread.
template <class Result>
using HookMethod = std::function<Result(at::Tensor, at::Tensor, at::Tensor, std::vector<int64_t>)>;

// Ctrl-C, on the main thread, which happened to be in a hook, perhaps of another thread's call.
bool is_interrupt(const py::error_already_set& error) {
    const py::gil_scoped_acquire gil;
    return error.matches(PyExc_KeyboardInterrupt) && on_main_thread();
}

template <class Result>
std::function<Result(const HookRows&)> hook_of(const std::optional<HookMethod<Result>>& given) {
    if (!given) return {};
    return [method = *given](const HookRows& shown) {
        try {
            return method(shown.input_ids, shown.scores, shown.rows, shown.lengths);
        } catch (const py::error_already_set& error) {
            if (is_interrupt(error)) throw HookInterrupted(std::current_exception());
            throw;
        }
    };
}

}  // namespace

void bind_hooks(py::module_& m) {
    py::class_<Hooks, std::shared_ptr<Hooks>>(m, "Hooks", "What a call asks at every position.")
        .def(py::init([](const std::optional<HookMethod<at::Tensor>>& process,
                         const std::optional<HookMethod<std::vector<bool>>>& stop, int64_t prompt_width,
                         int64_t padding) {
                 auto hooks = std::make_shared<Hooks>();
                 hooks->process = hook_of(process);
                 hooks->stop = hook_of(stop);
                 hooks->prompt_width = prompt_width;
                 hooks->padding = padding;
                 return hooks;
             }),
             py::kw_only(), "process"_a, "stop"_a, "prompt_width"_a, "padding"_a);
}

}  // namespace demiurgic
