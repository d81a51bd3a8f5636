#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <limits>
#include <memory>
#include <optional>

#include "engine.h"
#include "module_parameters.h"
#include "philox.h"
#include "stopping.h"

// Python's face of the core: convert, name, document, release the GIL; nothing else. Tensors never leave or enter but as
// the parameters of a model, where a hook of the user's is called, and as the keys and values of a prefix.
namespace py = pybind11;

namespace demiurgic {
namespace {

using namespace pybind11::literals;

// ---- values of options ----------------------------------------------------------------------------------------------

[[noreturn]] void wrong_type(const std::string& name, const std::string& expected, py::handle given) {
    throw py::type_error(name + " is " + py::repr(given).cast<std::string>() + " of type " +
                         py::type::of(given).attr("__name__").cast<std::string>() + ", but must be " + expected + ".");
}

// The int of anything with a working __index__ that is not a bool: int, numpy integers; else an empty object.
py::object as_index(py::handle value) {
    if (!PyIndex_Check(value.ptr()) || PyBool_Check(value.ptr())) return {};
    auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) PyErr_Clear();  // an array of several integers
    return index;
}

bool is_list(py::handle value) { return PyList_Check(value.ptr()) || PyTuple_Check(value.ptr()); }

int64_t to_integer(const std::string& name, const std::string& expected, py::handle value) {
    const py::object index = as_index(value);
    if (!index) wrong_type(name, expected, value);
    const int64_t converted = PyLong_AsLongLong(index.ptr());
    if (converted == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        throw py::value_error(name + " is " + py::repr(value).cast<std::string>() + ", which does not fit 64 bits.");
    }
    return converted;
}

uint64_t to_seed(py::handle value) {
    const py::object index = as_index(value);
    if (!index) wrong_type("seed", "an int, a list of ints or None", value);
    const uint64_t converted = PyLong_AsUnsignedLongLong(index.ptr());
    if (PyErr_Occurred()) {
        PyErr_Clear();
        throw py::value_error("seed is " + py::repr(value).cast<std::string>() + ", but must be from 0 to 2**64 - 1.");
    }
    return converted;
}

double to_number(const std::string& name, const std::string& expected, py::handle value) {
    // int, float, and whatever converts to them: numpy's numbers, tensors of one element
    if (PyBool_Check(value.ptr())) wrong_type(name, expected, value);
    const double converted = PyFloat_AsDouble(value.ptr());
    if (!PyErr_Occurred()) return converted;
    const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
    PyErr_Clear();
    if (too_large) return std::numeric_limits<double>::infinity();  // out of every range
    wrong_type(name, expected, value);
}

std::string to_text(const std::string& name, const std::string& expected, py::handle value) {
    if (!PyUnicode_Check(value.ptr())) wrong_type(name, expected, value);
    try {
        return value.cast<std::string>();
    } catch (const std::exception&) {
        PyErr_Clear();
        throw py::value_error(name + " is " + py::repr(value).cast<std::string>() +
                              ", which has a lone surrogate and so is no text.");
    }
}

Value from_python(const Option& option, py::handle value) {
    if (value.is_none()) return {};
    const std::string expected = option.type_name, entry = std::string("An entry of ") + option.name;
    switch (option.type) {
        case OptionType::boolean:
            if (!PyBool_Check(value.ptr())) wrong_type(option.name, expected, value);
            return value.cast<bool>();
        case OptionType::integer:
            return to_integer(option.name, expected, value);
        case OptionType::number:
            return to_number(option.name, expected, value);
        case OptionType::ids: {
            if (!is_list(value)) return Ids{to_integer(option.name, expected, value)};
            Ids ids;
            for (py::handle id : value) ids.push_back(to_integer(entry, "an int", id));
            return ids;
        }
        case OptionType::logit_bias: {
            if (!PyDict_Check(value.ptr())) wrong_type(option.name, expected, value);
            LogitBias bias;
            for (const auto& [id, number] : py::reinterpret_borrow<py::dict>(value)) {
                bias[to_integer(entry, "a token id and a number", id)] =
                    to_number(entry, "a token id and a number", number);
            }
            return bias;
        }
        case OptionType::seed: {
            if (!is_list(value)) return Seed(to_seed(value));
            std::vector<uint64_t> seeds;
            for (py::handle seed : value) seeds.push_back(to_seed(seed));
            return Seed(seeds);
        }
        case OptionType::text:
            return to_text(option.name, expected, value);
        case OptionType::texts: {
            if (!is_list(value)) return Strings{to_text(option.name, expected, value)};
            Strings texts;
            for (py::handle text : value) texts.push_back(to_text(entry, "a str", text));
            return texts;
        }
    }
    return {};
}

py::object to_python(const Option& option, const Value& value) {
    if (const Ids* ids = std::get_if<Ids>(&value);
        ids && ids->size() == 1 && std::string(option.name) == "eos_token_id") {
        return py::int_(ids->front());  // one id reads as it is usually written
    }
    return std::visit(
        [](const auto& held) -> py::object {
            using Held = std::decay_t<decltype(held)>;
            if constexpr (std::is_same_v<Held, std::monostate>) return py::none();
            if constexpr (!std::is_same_v<Held, std::monostate>) return py::cast(held);
        },
        value);
}

// ---- GenerationConfig -----------------------------------------------------------------------------------------------

void set_options(GenerationConfig& config, const py::dict& given) {
    for (const auto& [name, value] : given) {
        if (!PyUnicode_Check(name.ptr())) wrong_type("The name of an option", "a str", name);
        const Option& option = find_option(name.cast<std::string>());
        option.set(config, from_python(option, value));
    }
    config.validate();
}

GenerationConfig make_config(const py::dict& given) {
    GenerationConfig config;
    set_options(config, given);
    return config;
}

// The fourteen keys, then the others that differ from their defaults.
py::dict to_dict(const GenerationConfig& config) {
    static const GenerationConfig defaults;
    py::dict dict;
    for (const Option& option : options()) {
        const Value value = option.get(config);
        if (option.in_dict || value != option.get(defaults)) dict[option.name] = to_python(option, value);
    }
    return dict;
}

py::dict changed_options(const GenerationConfig& config) {
    static const GenerationConfig defaults;
    py::dict dict;
    for (const Option& option : options()) {
        const Value value = option.get(config);
        if (value != option.get(defaults)) dict[option.name] = to_python(option, value);
    }
    return dict;
}

std::string repr_of(const GenerationConfig& config) {
    std::string text = "GenerationConfig(";
    for (const auto& [name, value] : changed_options(config)) {
        if (text.back() != '(') text += ", ";
        text += name.cast<std::string>() + "=" + py::repr(value).cast<std::string>();
    }
    return text + ")";
}

GenerationConfig from_json(const std::string& text) {
    const py::object read = py::module_::import("json").attr("loads")(text);
    if (!PyDict_Check(read.ptr())) wrong_type("The JSON text", "an object of options", read);
    py::dict given = read;
    if (given.contains("logit_bias") && PyDict_Check(given["logit_bias"].ptr())) {  // JSON's keys are strings
        py::dict bias;
        for (const auto& [id, number] : given["logit_bias"].cast<py::dict>()) bias[py::int_(py::str(id))] = number;
        given["logit_bias"] = bias;
    }
    return make_config(given);
}

void bind_preset(py::class_<GenerationConfig>& cls, const Preset& preset) {
    const std::string name = preset.name;
    const std::string doc =
        std::string(preset.doc) + "\n\nA preset; `max_new_tokens` and `overrides` replace its values.";
    const py::cpp_function make(
        [config = preset.config](const py::object& type, const py::object& max_new_tokens,
                                 const py::kwargs& overrides) {
            py::dict given = changed_options(config);
            if (!max_new_tokens.is_none()) given["max_new_tokens"] = max_new_tokens;
            for (const auto& [key, value] : overrides) given[key] = value;
            return type(**given);
        },
        py::name(name.c_str()), py::arg("cls"), py::arg("max_new_tokens") = py::none(), doc.c_str());
    cls.attr(name.c_str()) = py::reinterpret_steal<py::object>(PyClassMethod_New(make.ptr()));
}

// So that a misspelt attribute is refused with the nearest name, as everywhere else.
void set_attribute(py::handle self, const py::str& name, py::handle value) {
    if (PyObject_GenericSetAttr(self.ptr(), name.ptr(), value.ptr()) == 0) return;
    py::error_already_set refused;
    if (!refused.matches(PyExc_AttributeError)) throw refused;
    try {
        find_option(name.cast<std::string>());
    } catch (const UnknownOption& error) {
        throw py::attribute_error(error.what());
    }
    throw refused;
}

void bind_generation_config(py::module_& m) {
    py::class_<GenerationConfig> cls(m, "GenerationConfig",
                                     "The options of a generation. `demiurgic.options()` tells all about each.");
    cls.def(py::init([](const py::kwargs& given) { return make_config(given); }));
    for (const Option& option : options()) {
        const std::string doc = std::string(option.type_name) + ": " + option.doc + " Allowed: " + option.range + ".";
        cls.def_property(
            option.name, [&option](const GenerationConfig& config) { return to_python(option, option.get(config)); },
            [&option](GenerationConfig& config, const py::object& value) {
                option.set(config, from_python(option, value));
            },
            doc.c_str());
    }
    cls.def("to_dict", &to_dict,
            "Keywords for generate: always the same fourteen keys, then those other options that differ from their "
            "defaults.")
        .def_static(
            "from_dict",
            [](const py::object& given) {
                if (!PyDict_Check(given.ptr())) wrong_type("What from_dict is given", "a dict of options", given);
                return make_config(given);
            },
            "options"_a, "The inverse of to_dict; missing options take their defaults.")
        .def("to_json", [](const GenerationConfig& c) { return py::module_::import("json").attr("dumps")(to_dict(c)); })
        .def_static("from_json", &from_json, "text"_a, "The inverse of to_json.")
        .def(
            "replace",
            [](GenerationConfig config, const py::kwargs& given) {
                set_options(config, given);
                return config;
            },
            "A copy with the given options changed.")
        .def("validate", &GenerationConfig::validate, "Raises ValueError where two options contradict each other.")
        .def(
            "__eq__", [](const GenerationConfig& a, const GenerationConfig& b) { return a == b; }, py::is_operator())
        .def("__setattr__", &set_attribute)
        .def("__repr__", &repr_of)
        .def(py::pickle(&changed_options, [](const py::dict& state) { return make_config(state); }));
    for (const Preset& preset : presets()) bind_preset(cls, preset);
}

py::list list_options() {
    static const GenerationConfig defaults;
    py::list list;
    for (const Option& option : options()) {
        list.append(py::dict("name"_a = option.name, "type"_a = option.type_name,
                             "default"_a = to_python(option, option.get(defaults)), "range"_a = option.range,
                             "doc"_a = option.doc));
    }
    return list;
}

py::dict list_presets() {
    py::dict dict;
    for (const Preset& preset : presets()) dict[preset.name] = preset.doc;
    return dict;
}

// ---- texts and ends -------------------------------------------------------------------------------------------------

std::shared_ptr<TokenBytes> make_token_bytes(const std::vector<std::string>& tokens,
                                             const std::vector<int64_t>& special, const std::string& spelling,
                                             const std::string& leading_blank) {
    const std::map<std::string, TokenSpelling> spellings{{"byte_level", TokenSpelling::byte_level},
                                                         {"pieces", TokenSpelling::pieces},
                                                         {"byte_fallback", TokenSpelling::byte_fallback},
                                                         {"raw", TokenSpelling::raw}};
    const std::map<std::string, LeadingBlank> blanks{{"kept", LeadingBlank::kept},
                                                     {"one_dropped", LeadingBlank::one_dropped},
                                                     {"token_dropped", LeadingBlank::token_dropped}};
    return std::make_shared<TokenBytes>(tokens, special, spellings.at(spelling), blanks.at(leading_blank));
}

// A sequence without a model: what a row of chosen tokens comes to.
struct Replay {
    Replay(const std::vector<int64_t>& prompt, const GenerationConfig& config,
           const std::optional<std::shared_ptr<TokenBytes>>& bytes)
        : sequence(prompt, resolved(config), 0) {
        if (!bytes) return;
        sequence.text = std::make_unique<RowText>(std::make_shared<TextRules>(*bytes, sequence.config), prompt);
    }

    static std::shared_ptr<const GenerationConfig> resolved(GenerationConfig config) {
        if (!config.eos_token_id) config.eos_token_id = Ids{};
        return std::make_shared<const GenerationConfig>(std::move(config));
    }

    std::string append(int64_t token) {
        if (sequence.finished()) throw py::value_error("The row has ended; nothing can be appended.");
        sequence.append(token);
        const FinishReason reason = reason_to_stop(sequence);
        if (reason != FinishReason::none) trim(sequence, reason);
        sequence.finish_reason = reason;
        return name_of(reason);
    }

    Sequence sequence;
};

void bind_texts(py::module_& m) {
    py::class_<TokenBytes, std::shared_ptr<TokenBytes>>(m, "TokenBytes",
                                                        "The bytes that each token of a vocabulary stands for.")
        .def(py::init(&make_token_bytes), "tokens"_a, "special"_a, "spelling"_a, "leading_blank"_a = "kept")
        .def(
            "of", [](const TokenBytes& bytes, int64_t token) { return py::bytes(std::string(bytes.of(token))); },
            "token"_a, "The bytes of one token; none of a special one and of an id outside the vocabulary.")
        .def("__len__", &TokenBytes::size);
    py::class_<Replay>(m, "Replay",
                       "A row that is given its tokens instead of generating them: where it ends, and why.")
        .def(py::init<std::vector<int64_t>, const GenerationConfig&,
                      const std::optional<std::shared_ptr<TokenBytes>>&>(),
             "prompt"_a, "config"_a, "token_bytes"_a = py::none())
        .def("append", &Replay::append, "token"_a,
             "Takes the next token; returns why the row has ended, or none. Raises ValueError where it had ended.")
        .def_property_readonly("tokens",
                               [](const Replay& r) {
                                   return std::vector<int64_t>(r.sequence.tokens.begin() + r.sequence.prompt_length,
                                                               r.sequence.tokens.end());
                               })
        .def_property_readonly(
            "text", [](const Replay& r) { return py::bytes(r.sequence.text ? r.sequence.text->text() : ""); })
        .def_property_readonly(
            "settled",
            [](const Replay& r) { return std::pair(r.sequence.settled_tokens(), r.sequence.settled_bytes()); })
        .def_property_readonly("stopped_by", [](const Replay& r) { return stopped_by(r.sequence); });
}

// ---- model and engine -----------------------------------------------------------------------------------------------

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "relu") return Activation::relu;
    throw py::value_error("The activation '" + name + "' is not known; use silu, gelu or relu.");
}

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

// Asked by the engine between layers: lets Ctrl-C in, at most every 50 ms. Only Python's main thread handles signals.
class SignalPoll {
public:
    SignalPoll() {
        const py::module_ threading = py::module_::import("threading");
        is_main_thread_ = threading.attr("main_thread")().is(threading.attr("current_thread")());
    }

    void operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (!is_main_thread_ || now - last_ < std::chrono::milliseconds(50)) return;
        last_ = now;
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }

private:
    bool is_main_thread_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// ---- hooks ----------------------------------------------------------------------------------------------------------

// A method of demiurgic.hooks.Hooks. Called, it takes the GIL; it may be called on any thread.
template <class Result>
using HookMethod = std::function<Result(at::Tensor, at::Tensor, at::Tensor, std::vector<int64_t>)>;

// Ctrl-C, on the main thread, which happened to be in a hook, perhaps of another thread's call.
bool is_interrupt(const py::error_already_set& error) {
    const py::gil_scoped_acquire gil;
    if (!error.matches(PyExc_KeyboardInterrupt)) return false;
    const py::module_ threading = py::module_::import("threading");
    return threading.attr("main_thread")().is(threading.attr("current_thread")());
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

// ---- calls ----------------------------------------------------------------------------------------------------------

// A call and the engine that works on it; gone from Python, it is cancelled.
struct CallHandle {
    std::shared_ptr<Engine> engine;
    std::shared_ptr<Call> call;

    CallHandle(std::shared_ptr<Engine> owner, std::shared_ptr<Call> added)
        : engine(std::move(owner)), call(std::move(added)) {}
    CallHandle(const CallHandle&) = delete;
    ~CallHandle() {
        const py::gil_scoped_release release;  // the lock may be held by a thread that wants the GIL
        engine->cancel(*call);
        engine->forget(*call);
    }

    // `read` of one row while no thread changes it.
    template <class Read>
    auto row(int64_t index, Read read) const {
        if (index < 0 || index >= static_cast<int64_t>(call->sequences.size())) {
            throw py::index_error("There is no row " + std::to_string(index) + ".");
        }
        std::decay_t<decltype(read(*call->sequences[index]))> result;
        const py::gil_scoped_release release;
        engine->read([&] { result = read(*call->sequences[index]); });
        return result;
    }
};

bool advance(const CallHandle& handle) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    return handle.engine->advance(*handle.call, std::ref(poll));
}

py::dict timings(const CallHandle& handle) {
    double prefill = 0, decode = 0;
    {
        const py::gil_scoped_release release;
        handle.engine->read([&] {
            prefill = handle.call->prefill_seconds;
            decode = handle.call->decode_seconds;
        });
    }
    return py::dict("prefill"_a = prefill, "decode"_a = decode);
}

// The elements from the start-th on.
template <class T>
std::vector<T> from(const std::vector<T>& values, int64_t start) {
    return {values.begin() + std::clamp<int64_t>(start, 0, static_cast<int64_t>(values.size())), values.end()};
}

void bind_call(py::module_& m) {
    py::class_<CallHandle>(m, "Call", "The rows of one call of generate, under way or finished.")
        .def(
            "advance", &advance,
            "Runs steps, or waits for another thread's, until the call has got on, or for a tenth of a second where it "
            "is not interruptible; False once it is finished. The GIL is released. Ctrl-C raises KeyboardInterrupt on "
            "the main thread.")
        .def(
            "cancel",
            [](const CallHandle& handle) {
                const py::gil_scoped_release release;
                handle.engine->cancel(*handle.call);
            },
            "Ends the unfinished rows and frees their cache.")
        .def(
            "settle",
            [](const CallHandle& handle) {
                const py::gil_scoped_release release;
                handle.engine->settle(*handle.call);
            },
            "Of an ended call with keeps_if_settled: its prefixes are kept if the weights are still the same.")
        .def_property_readonly("num_rows", [](const CallHandle& h) { return h.call->sequences.size(); })
        .def(
            "tokens",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) {
                    const int64_t first = s.prompt_length + std::clamp<int64_t>(start, 0, s.num_generated());
                    return std::vector<int64_t>(s.tokens.begin() + first, s.tokens.end());
                });
            },
            "row"_a, "start"_a = 0, "The generated ids of a row from the start-th on.")
        .def(
            "finish_reason",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) {
                    const bool ends = !s.finished() && s.call->cancelled;  // after the step that is under way
                    return std::string(name_of(ends ? FinishReason::cancelled : s.finish_reason));
                });
            },
            "row"_a, "none | eos | stop | length | repetition | error | cancelled")
        .def(
            "error",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return s.error; });
            },
            "row"_a, "The message where the finish reason is error, else an empty string.")
        .def(
            "logprobs",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) { return from(s.logprobs, start); });
            },
            "row"_a, "start"_a = 0,
            "Log-probabilities of the generated ids from the start-th on by the model; empty unless they were asked for.")
        .def(
            "processed_logprobs",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return handle.row(row, [start](const Sequence& s) { return from(s.processed_logprobs, start); });
            },
            "row"_a, "start"_a = 0,
            "The same by what the options left of the distribution; empty unless they were asked for.")
        .def(
            "prompt_logprobs",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return s.all_prompt_logprobs(); });
            },
            "row"_a, "Of the prompt's tokens but the first; empty unless they were asked for and are all known.")
        .def(
            "reports",
            [](const CallHandle& handle, int64_t row, bool processed, int64_t start) {
                return handle.row(row, [&](const Sequence& s) {
                    const Reports& reports = processed ? s.processed_reports : s.raw_reports;
                    const int64_t width = s.config->top_logprobs;
                    return std::tuple(from(reports.ids, start * width), from(reports.logprobs, start * width),
                                      from(reports.entropies, start));
                });
            },
            "row"_a, "processed"_a, "start"_a = 0,
            "Of the distributions at the generated ids from the start-th on: the top ids and their log-probabilities, k "
            "after k, and the entropies; each empty unless it was asked for.")
        .def(
            "drafts",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return std::pair(s.num_drafted, s.num_accepted); });
            },
            "row"_a, "How many drafts of a row's tokens were verified, and how many of them were accepted.")
        .def(
            "text",
            [](const CallHandle& handle, int64_t row, int64_t start) {
                return py::bytes(handle.row(row, [start](const Sequence& s) {
                    const int64_t end = s.settled_bytes(), first = std::clamp<int64_t>(start, 0, end);
                    return s.text ? s.text->text().substr(first, end - first) : std::string();
                }));
            },
            "row"_a, "start"_a = 0,
            "UTF-8 of the generated text of a row from the start-th byte on, as far as it stays; empty without "
            "token_bytes.")
        .def(
            "settled",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row,
                                  [](const Sequence& s) { return std::pair(s.settled_tokens(), s.settled_bytes()); });
            },
            "row"_a,
            "How many of the generated ids of a row, and bytes of their text, stay, whatever comes. The others may be "
            "taken back, because they may turn out to belong to a stop.")
        .def(
            "stopped_by",
            [](const CallHandle& handle, int64_t row) {
                return handle.row(row, [](const Sequence& s) { return stopped_by(s); });
            },
            "row"_a, "The stop string, the value of stop_at or the stop id that has ended a row; else None.")
        .def("timings", &timings,
             "Seconds in steps with prompt tokens of this call (prefill) and in its other steps (decode).");
}

std::vector<std::pair<std::vector<float>, std::string>> score_rows(Engine& engine,
                                                                   const std::vector<std::vector<int64_t>>& rows,
                                                                   int64_t max_running) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    std::vector<std::pair<std::vector<float>, std::string>> result;
    for (Score& row : engine.score(rows, max_running, std::ref(poll))) {
        result.emplace_back(std::move(row.logprobs), std::move(row.error));
    }
    return result;
}

py::dict counters(const Engine& engine) {
    EngineCounters c;
    {
        const py::gil_scoped_release release;  // the lock may be held by a thread that wants the GIL
        c = engine.counters();
    }
    return py::dict("num_steps"_a = c.num_steps, "num_computed_tokens"_a = c.num_computed_tokens,
                    "num_steps_ahead"_a = c.num_steps_ahead, "num_preemptions"_a = c.num_preemptions,
                    "num_used_blocks"_a = c.num_used_blocks, "cache_bytes"_a = c.cache_bytes,
                    "num_kept_tokens"_a = c.num_kept_tokens, "kept_bytes"_a = c.kept_bytes, "num_hits"_a = c.num_hits,
                    "num_reused_tokens"_a = c.num_reused_tokens, "num_evicted_blocks"_a = c.num_evicted_blocks);
}

// ---- kept prefixes

// `work` on the engine without the GIL, with a poll that lets Ctrl-C in.
template <class Work>
auto without_gil(Work work) {
    SignalPoll poll;
    const py::gil_scoped_release release;
    return work(std::ref(poll));
}

std::pair<at::Tensor, at::Tensor> read_prefix(Engine& engine, const std::vector<int64_t>& tokens,
                                              uint64_t fingerprint) {
    KVCache::Content content =
        without_gil([&](const Poll& poll) { return engine.read_prefix(tokens, fingerprint, poll); });
    return {std::move(content.keys), std::move(content.values)};
}

void write_prefix(Engine& engine, const std::vector<int64_t>& tokens, at::Tensor keys, at::Tensor values,
                  uint64_t fingerprint) {
    const KVCache::Content content{std::move(keys), std::move(values)};
    without_gil([&](const Poll& poll) { engine.write_prefix(tokens, content, fingerprint, poll); });
}

void bind_prefixes(py::class_<Engine, std::shared_ptr<Engine>>& cls) {
    cls.def("fingerprint", &Engine::fingerprint, py::call_guard<py::gil_scoped_release>(),
            "The present values of all weights, as one number of 64 bits.")
        .def("keep_prefixes_of", &Engine::keep_prefixes_of, "fingerprint"_a, py::call_guard<py::gil_scoped_release>(),
             "Drops the prefixes that were computed with other weights; whether there were any.")
        .def(
            "clear_prefixes",
            [](Engine& engine) { without_gil([&](const Poll& poll) { engine.clear_prefixes(poll); }); },
            "Drops all prefixes, and the memory of the cache if no call is under way.")
        .def("read_prefix", &read_prefix, "tokens"_a, "fingerprint"_a,
             "Keys and values [layers, kv_heads, T, head_dim] of tokens that are kept.")
        .def("write_prefix", &write_prefix, "tokens"_a, "keys"_a, "values"_a, "fingerprint"_a,
             "Keeps tokens with what read_prefix gave.")
        .def_property_readonly("kernels", &Engine::kernels, "Device type and kernels, such as 'cpu avx2'.");
}

void bind_engine(py::module_& m) {
    py::class_<Request>(m, "Request", "What a call asks for.")
        .def(py::init([](std::vector<std::vector<int64_t>> prompts, const GenerationConfig& config,
                         std::vector<uint64_t> seeds, int64_t max_running, bool want_logprobs,
                         const std::optional<std::shared_ptr<TokenBytes>>& token_bytes,
                         std::vector<int64_t> max_new_tokens, const std::optional<std::shared_ptr<Hooks>>& hooks,
                         std::optional<double> max_seconds, const std::optional<std::shared_ptr<Weights>>& draft_model,
                         bool keeps_if_settled, bool always_drafts, bool interruptible) {
                 return Request{std::move(prompts),
                                config,
                                std::move(seeds),
                                max_running,
                                want_logprobs,
                                token_bytes.value_or(nullptr),
                                std::move(max_new_tokens),
                                hooks.value_or(nullptr),
                                max_seconds,
                                draft_model.value_or(nullptr),
                                keeps_if_settled,
                                always_drafts,
                                interruptible};
             }),
             py::kw_only(), "prompts"_a, "config"_a, "seeds"_a, "max_running"_a, "want_logprobs"_a,
             "token_bytes"_a = py::none(), "max_new_tokens"_a = std::vector<int64_t>(), "hooks"_a = py::none(),
             "max_seconds"_a = py::none(), "draft_model"_a = py::none(), "keeps_if_settled"_a = false,
             "always_drafts"_a = false, "interruptible"_a = true)
        .def_readwrite("seeds", &Request::seeds, "One a row of the result, 0 to 2**64 - 1.");
    py::class_<Engine, std::shared_ptr<Engine>> cls(m, "Engine",
                                                    "Generates for all calls that are under way on one model.");
    bind_prefixes(cls);
    cls.def(py::init<Weights, std::optional<int64_t>, int64_t, bool, bool>(), "weights"_a, "cache_bytes"_a,
            "max_step_tokens"_a, "keep_prefixes"_a = false, "exact"_a = true)
        .def("check", &Engine::check, "request"_a, py::call_guard<py::gil_scoped_release>(),
             "Raises what add would raise for a bad request or for want of room.")
        .def(
            "add",
            [](const std::shared_ptr<Engine>& engine, const Request& request) {
                std::shared_ptr<Call> call;
                {
                    SignalPoll poll;
                    const py::gil_scoped_release release;
                    call = engine->add(request, std::ref(poll));
                }
                return std::make_unique<CallHandle>(engine, std::move(call));
            },
            "request"_a,
            "Adds every prompt num_return_sequences times; nothing is computed before the call is advanced.")
        .def(
            "score", &score_rows, "rows"_a, "max_running"_a,
            "For each row the log-probabilities of all its tokens but the first, and an empty string; or none, and the "
            "message of an error. The GIL is released. Ctrl-C raises KeyboardInterrupt on the main thread.")
        .def("serves", &Engine::serves, "weights"_a, "cache_bytes"_a, "max_step_tokens"_a, "exact"_a = true,
             "Whether calls on these live tensors, with these limits, can share this engine.")
        .def("counters", &counters, "Steps, computed tokens, preemptions, used blocks and bytes of the cache so far.");
}

}  // namespace
}  // namespace demiurgic

PYBIND11_MODULE(_C, m) {
    using namespace demiurgic;
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
    bind_generation_config(m);
    m.def("options", &list_options,
          "Every option: name, type, default, range and doc, from the one table in the core.");
    m.def("presets", &list_presets, "The presets of GenerationConfig and what each is for.");
    m.def("derive_seed", &derive_seed, "seed"_a, "i"_a, "The seed of the i-th of the rows that share `seed`.");
    bind_model(m);
    bind_hooks(m);
    bind_texts(m);
    bind_call(m);
    bind_engine(m);
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
