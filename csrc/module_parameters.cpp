#include "module_parameters.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <vector>

namespace demiurgic {

namespace py = pybind11;

namespace {

constexpr int kDeepest = 500;  // levels of modules; one that contains itself has more than any stack

// Made once and kept: Python may be gone before the statics of C++ are.
struct Names {
    PyObject* modules = PyUnicode_InternFromString("_modules");
    PyObject* parameters = PyUnicode_InternFromString("_parameters");
    PyObject* forward_hooks = PyUnicode_InternFromString("_forward_hooks");
    PyObject* forward_pre_hooks = PyUnicode_InternFromString("_forward_pre_hooks");
    PyObject* forward = PyUnicode_InternFromString("forward");
    PyObject* compiled = PyUnicode_InternFromString("_orig_mod");  // where torch.compile keeps the module it wraps
    PyObject* partitioned = PyUnicode_InternFromString("ds_id");   // DeepSpeed's mark of such a parameter
};

const Names& names() {
    static const Names* made = new Names;
    return *made;
}

[[noreturn]] void refuse(const std::string& message) { throw py::value_error(message); }

// An object's own attributes, without the search through classes and the AttributeError of what is not there.
class OwnAttributes {
public:
    explicit OwnAttributes(py::handle owner)
        : found_(py::reinterpret_steal<py::dict>(PyObject_GenericGetDict(owner.ptr(), nullptr))) {
        if (!found_) throw py::error_already_set();
    }

    // Null where it is not there.
    py::handle get(PyObject* name) const { return look_up(found_, name); }

    static py::handle look_up(const py::dict& dict, PyObject* name) {
        PyObject* value = PyDict_GetItemWithError(dict.ptr(), name);
        if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }

private:
    py::dict found_;
};

struct Part {
    std::string name;  // "" is the model itself
    py::object module;
    OwnAttributes attributes;

    // One of the dicts that every nn.Module has.
    py::dict dict(PyObject* name) const {
        const py::handle value = attributes.get(name);
        if (!value) {
            refuse(this->name + " has no " + std::string(py::str(name)) +
                   "; the class of every module must call nn.Module.__init__.");
        }
        return py::dict(py::reinterpret_borrow<py::object>(value));
    }
};

std::string class_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

void add_parts(const std::string& name, py::handle module, int depth, std::vector<Part>& found) {
    if (module.is_none()) return;
    if (depth > kDeepest) {
        refuse("The modules of the model lie more than " + std::to_string(kDeepest) +
               " deep in one another; does one contain itself?");
    }
    Part part{name, py::reinterpret_borrow<py::object>(module), OwnAttributes(module)};
    const py::dict children = part.dict(names().modules);
    if (const py::handle wrapped = OwnAttributes::look_up(children, names().compiled)) {
        add_parts(name, wrapped, depth + 1, found);
        return;
    }
    found.push_back(std::move(part));
    const std::string prefix = name.empty() ? "" : name + ".";
    for (const auto& [child, inner] : children)
        add_parts(prefix + std::string(py::str(child)), inner, depth + 1, found);
}

void refuse_sharded(const std::string& name, py::handle parameter) {
    if (!THPVariable_Check(parameter.ptr())) {
        refuse("The parameter " + name + " is a " + class_name(parameter) + ", not a tensor.");
    }
    if (OwnAttributes(parameter).get(names().partitioned)) {
        refuse("The parameter " + name +
               " is partitioned by DeepSpeed ZeRO-3; generate inside deepspeed.zero.GatheredParameters over all "
               "parameters.");
    }
    const bool plain = reinterpret_cast<PyObject*>(Py_TYPE(parameter.ptr())) == ParameterClass;
    if (!plain && (class_name(parameter) == "DTensor" || class_name(parameter.attr("data")) == "DTensor")) {
        refuse("The parameter " + name +
               " is a DTensor, sharded by fully_shard or tensor parallelism; generate works on whole parameters. "
               "Gather them into an unsharded model first.");
    }
    if (THPVariable_Unpack(parameter.ptr()).layout() != at::kStrided) {
        refuse("The parameter " + name + " is " + std::string(py::str(parameter.attr("layout"))) +
               "; generate works on dense parameters.");
    }
}

// Refuses what generate would compute otherwise than the module's own forward.
class ForwardCheck {
public:
    ForwardCheck(const std::string& our_module, py::handle torch_classes)
        : our_module_(our_module), torch_classes_(torch_classes) {}

    void operator()(const Part& part) {
        const py::handle type = py::type::handle_of(part.module);
        if (std::find(known_.begin(), known_.end(), type.ptr()) == known_.end()) {
            check_class(part.name, type);
            known_.push_back(type.ptr());
        }
        if (py::len(part.dict(names().forward_hooks)) > 0 || py::len(part.dict(names().forward_pre_hooks)) > 0) {
            refuse(part.name + " has a forward hook, which generate would not run; remove it first.");
        }
        if (part.attributes.get(names().forward)) refuse_replaced(part.name);
    }

private:
    void check_class(const std::string& name, py::handle type) const {
        const bool ours = module_of(type) == our_module_;
        if (!ours && !torch_classes_.contains(type)) {
            refuse(name + " is of class " + std::string(py::str(type.attr("__name__"))) +
                   ", which generate does not know: it would compute something else. Merge adapters, remove "
                   "parametrizations and undo quantization first.");
        }
        const std::string home = module_of(type.attr("forward"));
        if (home != our_module_ && home.rfind("torch.nn.modules.", 0) != 0) refuse_replaced(name);
    }

    static std::string module_of(py::handle object) { return py::str(py::getattr(object, "__module__", py::str(""))); }

    [[noreturn]] static void refuse_replaced(const std::string& name) {
        refuse("The forward of " + name + " was replaced, and generate would not run it; restore it first.");
    }

    const std::string& our_module_;
    const py::handle torch_classes_;
    std::vector<PyObject*> known_;  // classes that were checked in this walk
};

}  // namespace

py::dict module_parameters(py::handle model, const std::string& our_module, py::handle torch_classes) {
    std::vector<Part> parts;
    add_parts("", model, 0, parts);
    py::dict parameters;
    for (const Part& part : parts) {
        const std::string prefix = part.name.empty() ? "" : part.name + ".";
        for (const auto& [kind, parameter] : part.dict(names().parameters)) {
            if (parameter.is_none()) continue;
            const std::string name = prefix + std::string(py::str(kind));
            refuse_sharded(name,
                           parameter);  // before the hooks and classes with which sharding works, to name the cause
            parameters[py::str(name)] = parameter;
        }
    }
    ForwardCheck check(our_module, torch_classes);
    for (size_t i = 1; i < parts.size(); ++i) check(parts[i]);  // the model itself was checked by its class
    return parameters;
}

}  // namespace demiurgic
