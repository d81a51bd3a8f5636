#include "weights.h"

#include <ATen/ops/isfinite.h>

#include <sstream>
#include <stdexcept>

namespace demiurgic {

namespace {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

bool supported(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf; }

// What the shapes of the parameters do not say.
void check(const ModelConfig& config) {
    for (const LayerConfig& layer : config.layers) {
        if (layer.num_heads < 1 || layer.num_kv_heads < 1 || layer.num_heads % layer.num_kv_heads != 0) {
            refuse("A layer has ", layer.num_heads, " heads and ", layer.num_kv_heads,
                   " key/value heads; the first must be a multiple of the second, and both positive.");
        }
        if (layer.head_dim < 2 || layer.head_dim != 2 * static_cast<int64_t>(config.rotary_frequencies.size())) {
            refuse("A layer has heads of size ", layer.head_dim, " and the config ", config.rotary_frequencies.size(),
                   " rotary frequencies; there must be one for every two dimensions.");
        }
    }
}

}  // namespace

Weights::Weights(ModelConfig config, std::map<std::string, at::Tensor> parameters)
    : config_(std::move(config)), parameters_(std::move(parameters)) {
    // Other tensors on the same memory, so that a parameter whose data is replaced during a call is not pulled away from
    // under a step.
    for (auto& [name, parameter] : parameters_) parameter = parameter.variable_data();
    const int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    const std::string embedding_name = "model.embed_tokens.weight";
    const auto found = parameters_.find(embedding_name);
    if (found == parameters_.end()) refuse("The model has no parameter ", embedding_name, ".");
    embedding = found->second;  // the one that the others are compared with
    if (embedding.is_meta()) {
        refuse("The parameter ", embedding_name,
               " is on the meta device and holds no numbers; load the model's weights.");
    }
    if (!supported(embedding.scalar_type())) {
        refuse("The parameter ", embedding_name, " is of ", embedding.scalar_type(),
               "; float32, bfloat16 and float16 are supported.");
    }
    embedding = take(embedding_name, {vocab, hidden}, false);
    for (size_t i = 0; i < config_.layers.size(); ++i) {
        layers.push_back(layer("model.layers." + std::to_string(i), config_.layers[i]));
    }
    norm = take("model.norm.weight", {hidden}, true);
    const bool tied = parameters_.find("lm_head.weight") == parameters_.end();
    head = tied ? Linear{embedding, {}} : linear("lm_head", vocab, hidden);
    check(config_);  // last: a parameter of another shape says more
}

at::Tensor Weights::take(const std::string& name, at::IntArrayRef shape, bool norm) const {
    const auto found = parameters_.find(name);
    if (found == parameters_.end()) refuse("The model has no parameter ", name, ".");
    const at::Tensor& tensor = found->second;
    if (tensor.sizes() != shape) {
        refuse("The parameter ", name, " has the shape ", tensor.sizes(), ", but the model's config says ", shape, ".");
    }
    if (tensor.is_meta()) {
        refuse("The parameter ", name, " is on the meta device and holds no numbers; load the model's weights.");
    }
    if (tensor.device() != device()) {
        refuse("The parameter ", name, " is on ", tensor.device(), " and model.embed_tokens.weight on ", device(),
               "; all parameters must be on one device.");
    }
    const bool mixes = tensor.scalar_type() == dtype() || (norm && tensor.scalar_type() == at::kFloat);
    if (!mixes) {
        refuse("The parameter ", name, " is of ", tensor.scalar_type(), " and model.embed_tokens.weight of ", dtype(),
               "; all parameters must have one dtype, but norms may be float32.");
    }
    return tensor;
}

Linear Weights::linear(const std::string& name, int64_t out, int64_t in) const {
    Linear result{take(name + ".weight", {out, in}, false), {}};
    if (parameters_.count(name + ".bias")) result.bias = take(name + ".bias", {out}, false);
    return result;
}

LayerWeights Weights::layer(const std::string& prefix, const LayerConfig& layer) const {
    const int64_t hidden = config_.hidden_size, inner = layer.intermediate_size;
    const int64_t q_size = layer.num_heads * layer.head_dim, kv_size = layer.num_kv_heads * layer.head_dim;
    const std::string attention = prefix + ".self_attn.", mlp = prefix + ".mlp.";
    LayerWeights weights;
    weights.attention_norm = take(prefix + ".input_layernorm.weight", {hidden}, true);
    weights.q = linear(attention + "q_proj", q_size, hidden);
    weights.k = linear(attention + "k_proj", kv_size, hidden);
    weights.v = linear(attention + "v_proj", kv_size, hidden);
    weights.attention_out = linear(attention + "o_proj", hidden, q_size);
    weights.mlp_norm = take(prefix + ".post_attention_layernorm.weight", {hidden}, true);
    if (layer.gated) weights.gate = linear(mlp + "gate_proj", inner, hidden);
    weights.up = linear(mlp + (layer.gated ? "up_proj" : "fc1"), inner, hidden);
    weights.down = linear(mlp + (layer.gated ? "down_proj" : "fc2"), hidden, inner);
    return weights;
}

bool Weights::same_layout(const Weights& other) const {
    if (parameters_.size() != other.parameters_.size()) return false;
    for (auto mine = parameters_.begin(), theirs = other.parameters_.begin(); mine != parameters_.end();
         ++mine, ++theirs) {
        const at::Tensor &a = mine->second, &b = theirs->second;
        if (mine->first != theirs->first || a.data_ptr() != b.data_ptr() || a.scalar_type() != b.scalar_type() ||
            a.device() != b.device() || a.sizes() != b.sizes() || a.strides() != b.strides()) {
            return false;
        }
    }
    return config_ == other.config_;
}

bool Weights::rows_are_contiguous() const {
    return std::all_of(parameters_.begin(), parameters_.end(),
                       [](const auto& entry) { return entry.second.size(-1) <= 1 || entry.second.stride(-1) == 1; });
}

int64_t Weights::bytes_of_step() const {
    int64_t sum = 0;
    for (const auto& [name, tensor] : parameters_) sum += static_cast<int64_t>(tensor.nbytes());
    // A head that is the embedding may have a name of its own.
    return parameters_.count("lm_head.weight") ? sum - static_cast<int64_t>(embedding.nbytes()) : sum;
}

std::string Weights::first_non_finite() const {
    for (const auto& [name, tensor] : parameters_) {
        if (!at::isfinite(tensor).all().item<bool>()) return name;
    }
    return "";
}

}  // namespace demiurgic
