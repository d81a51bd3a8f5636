#include <pybind11/stl.h>

#include <limits>

#include "bindings.h"
#include "generation_config.h"

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

}  // namespace

void bind_options(py::module_& m) {
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
    m.def("options", &list_options,
          "Every option: name, type, default, range and doc, from the one table in the core.");
    m.def("presets", &list_presets, "The presets of GenerationConfig and what each is for.");
}

}  // namespace demiurgic
