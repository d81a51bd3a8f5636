#include "checkpoint.h"

#include <torch/serialize.h>

#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>

namespace {

using Dict = c10::impl::GenericDict;

Dict read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file || bytes.empty())
        throw std::runtime_error("There is no file " + path + " that can be read, or it is empty.");
    c10::IValue content;
    try {
        content = torch::pickle_load(bytes);
    } catch (const std::exception&) {  // its messages are about the insides of the format
        throw std::runtime_error(path +
                                 " is not a whole file of torch.save, or holds more than dicts, numbers and tensors.");
    }
    if (!content.isGenericDict())
        throw std::runtime_error(path + " holds no dict; write it with the lines of README.md.");
    return content.toGenericDict();
}

// None where the key is missing.
c10::IValue value_of(const Dict& dict, const std::string& key) {
    return dict.contains(key) ? dict.at(key) : c10::IValue();
}

[[noreturn]] void refuse(const std::string& key, const std::string& expected) {
    throw std::runtime_error("The entry '" + key + "' of the file is missing or is not " + expected + ".");
}

Dict dict_of(const Dict& dict, const std::string& key) {
    const c10::IValue value = value_of(dict, key);
    if (!value.isGenericDict()) refuse(key, "a dict");
    return value.toGenericDict();
}

int64_t integer_of(const Dict& dict, const std::string& key) {
    const c10::IValue value = value_of(dict, key);
    if (!value.isInt()) refuse(key, "an integer");
    return value.toInt();
}

double number_of(const Dict& dict, const std::string& key) {
    const c10::IValue value = value_of(dict, key);
    if (!value.isDouble() && !value.isInt()) refuse(key, "a number");
    return value.isDouble() ? value.toDouble() : static_cast<double>(value.toInt());
}

int64_t integer_or(const Dict& dict, const std::string& key, int64_t absent) {
    return value_of(dict, key).isNone() ? absent : integer_of(dict, key);
}

std::vector<int64_t> ids_of(const Dict& dict, const std::string& key) {
    const c10::IValue value = value_of(dict, key);
    if (value.isNone()) return {};
    if (!value.isList()) return {integer_of(dict, key)};
    std::vector<int64_t> ids;
    for (const c10::IValue& id : value.toListRef()) {
        if (!id.isInt()) refuse(key, "an integer or a list of integers");
        ids.push_back(id.toInt());
    }
    return ids;
}

std::vector<float> floats_of(const Dict& dict, const std::string& key) {
    const c10::IValue value = value_of(dict, key);
    if (!value.isTensor() || value.toTensor().scalar_type() != at::kFloat) refuse(key, "a float32 tensor");
    const at::Tensor tensor = value.toTensor().contiguous();
    return {tensor.const_data_ptr<float>(), tensor.const_data_ptr<float>() + tensor.numel()};
}

std::map<std::string, at::Tensor> tensors_of(const Dict& dict, const std::string& key) {
    std::map<std::string, at::Tensor> tensors;
    for (const auto& entry : dict_of(dict, key)) {
        if (!entry.key().isString() || !entry.value().isTensor()) refuse(key, "a dict of names and tensors");
        tensors.emplace(entry.key().toStringRef(), entry.value().toTensor());
    }
    return tensors;
}

demiurgic::LayerConfig layer_config(const Dict& config) {
    const c10::IValue value = value_of(config, "activation_function");
    const std::string name = value.isString() ? value.toStringRef() : "";
    const bool gated = name == "swiglu";
    if (!gated && name != "swish" && name != "silu" && name != "gelu" && name != "relu") {
        refuse("activation_function", "swiglu, swish, silu, gelu or relu");
    }
    const int64_t heads = integer_of(config, "num_attention_heads");
    if (heads < 1) refuse("num_attention_heads", "1 or more");
    return {.num_heads = heads,
            .num_kv_heads = integer_or(config, "num_key_value_heads", heads),
            .head_dim = integer_or(config, "attention_head_dim", integer_of(config, "hidden_size") / heads),
            .intermediate_size = integer_of(config, "intermediate_size"),
            .activation = name == "gelu"   ? demiurgic::Activation::gelu
                          : name == "relu" ? demiurgic::Activation::relu
                                           : demiurgic::Activation::silu,
            .gated = gated};
}

demiurgic::ModelConfig model_config(const Dict& file) {
    const Dict config = dict_of(file, "config");
    const int64_t layers = integer_of(config, "num_hidden_layers");
    if (layers < 0 || layers > 10'000) refuse("num_hidden_layers", "0 to 10000");
    return {.vocab_size = integer_of(config, "vocab_size"),
            .hidden_size = integer_of(config, "hidden_size"),
            .rms_norm_eps = number_of(config, "rms_norm_eps"),
            .rotary_frequencies = floats_of(file, "rotary_frequencies"),
            .rotary_scaling = number_of(file, "rotary_scaling"),
            .layers = std::vector(static_cast<size_t>(layers), layer_config(config))};
}

}  // namespace

Checkpoint read_checkpoint(const std::string& path) {
    const Dict file = read_file(path);
    return {demiurgic::Weights(model_config(file), tensors_of(file, "weights")),
            ids_of(dict_of(file, "config"), "eos_token_id")};
}
