#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model_config.h"

namespace demiurgic {

struct LayerWeights {
    at::Tensor attention_norm;  // [H]
    Linear q, k, v, attention_out;
    at::Tensor mlp_norm;    // [H]
    Linear gate, up, down;  // gate has no weight where the MLP is not gated
};

// The live tensors of a model by role: references to the parameters, never copies. What an optimizer writes in place is
// seen by the next step.
class Weights {
public:
    // `parameters` by the names of Hugging Face's Llama. Throws std::invalid_argument where one is missing, has another
    // shape than the config says, another device than the others, is on the meta device, or has a dtype that the decoder
    // cannot mix (only norms may be float32 beside float16 or bfloat16 matrices).
    Weights(ModelConfig config, std::map<std::string, at::Tensor> parameters);

    const ModelConfig& config() const { return config_; }
    at::Device device() const { return embedding.device(); }
    at::ScalarType dtype() const { return embedding.scalar_type(); }

    // Same config, addresses, dtypes, shapes and strides: a cache and buffers made for one serve the other.
    bool same_layout(const Weights& other) const;

    // Whether neighbours in a row of every parameter are neighbours in memory.
    bool rows_are_contiguous() const;

    // What a step reads: of an embedding that is not the head as well, next to nothing.
    int64_t bytes_of_step() const;

    // By name, as they were given.
    const std::map<std::string, at::Tensor>& parameters() const { return parameters_; }

    // The name of the first parameter with a NaN or an infinity in it, or "".
    std::string first_non_finite() const;

    at::Tensor embedding;  // [V, H]
    std::vector<LayerWeights> layers;
    at::Tensor norm;  // [H]
    Linear head;      // [V, H]

private:
    at::Tensor take(const std::string& name, at::IntArrayRef shape, bool norm) const;
    Linear linear(const std::string& name, int64_t out, int64_t in) const;
    LayerWeights layer(const std::string& prefix, const LayerConfig& layer) const;

    ModelConfig config_;
    std::map<std::string, at::Tensor> parameters_;
};

}  // namespace demiurgic
