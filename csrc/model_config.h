#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace demiurgic {

struct LayerConfig {
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t intermediate_size;
    Activation activation;
    bool gated;  // gate, up and down; else up and down alone

    bool operator==(const LayerConfig&) const = default;
};

// The shapes and variants of a decoder of the Llama family.
struct ModelConfig {
    int64_t vocab_size;
    int64_t hidden_size;
    double rms_norm_eps;
    std::vector<float> rotary_frequencies;  // [head_dim / 2], radians per position
    double rotary_scaling;                  // multiplies cos and sin (yarn's attention factor)
    std::vector<LayerConfig> layers;

    bool operator==(const ModelConfig&) const = default;
};

}  // namespace demiurgic
