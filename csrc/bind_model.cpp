#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings.h"
#include "module_parameters.h"
#include "weights.h"

namespace py = pybind11;

namespace demiurgic {
namespace {

using namespace pybind11::literals;

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "relu") return Activation::relu;
    throw py::value_error("The activation '" + name + "' is not known; use silu, gelu or relu.");
}

}  // namespace

void bind_model(py::module_& m) {
    py::class_<LayerConfig>(m, "LayerConfig", "The shapes and variants of one decoder layer.")
        .def(py::init([](int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t intermediate_size,
                         const std::string& activation, bool gated) {
                 return LayerConfig{num_heads, num_kv_heads, head_dim, intermediate_size, activation_of(activation),
                                    gated};
             }),
             py::kw_only(), "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "intermediate_size"_a, "activation"_a,
             "gated"_a);
    py::class_<ModelConfig>(m, "ModelConfig", "The shapes and variants of a decoder.")
        .def(
            py::init([](int64_t vocab_size, int64_t hidden_size, double rms_norm_eps,
                        std::vector<float> rotary_frequencies, double rotary_scaling, std::vector<LayerConfig> layers) {
                return ModelConfig{vocab_size,     hidden_size,      rms_norm_eps, std::move(rotary_frequencies),
                                   rotary_scaling, std::move(layers)};
            }),
            py::kw_only(), "vocab_size"_a, "hidden_size"_a, "rms_norm_eps"_a, "rotary_frequencies"_a,
            "rotary_scaling"_a, "layers"_a);
    py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights",
                                                  "The live parameters of a model by role: references, never copies.")
        .def(py::init<ModelConfig, std::map<std::string, at::Tensor>>(), "config"_a, "parameters"_a);
    m.def("module_parameters", module_parameters, "model"_a, "our_module"_a, "torch_classes"_a,
          "The parameters of a torch module by name; refuses what the engine would compute wrongly.");
}

}  // namespace demiurgic
