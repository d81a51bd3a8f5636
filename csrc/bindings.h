#pragma once

#include <pybind11/pybind11.h>

// Python's face of the core: convert, name, document, release the GIL; nothing else. Tensors never leave or enter but as
// the parameters of a model, where a hook of the user's is called, and as the keys and values of a prefix.
namespace demiurgic {

inline bool on_main_thread() {
    const pybind11::module_ threading = pybind11::module_::import("threading");
    return threading.attr("main_thread")().is(threading.attr("current_thread")());
}

void bind_options(pybind11::module_& m);  // GenerationConfig, and what there is to choose
void bind_model(pybind11::module_& m);    // ModelConfig and Weights
void bind_hooks(pybind11::module_& m);
void bind_texts(pybind11::module_& m);   // TokenBytes and Replay
void bind_engine(pybind11::module_& m);  // Request, Call and Engine; after the others, whose types they take

}  // namespace demiurgic
