#include "fingerprint.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace demiurgic {

namespace {

// splitmix64's finalizer (S. Vigna) over words one after the other: one to one in each.
class Hash {
public:
    void add(uint64_t word) {
        state_ = (state_ ^ word) + 0x9e3779b97f4a7c15;
        state_ = (state_ ^ state_ >> 30) * 0xbf58476d1ce4e5b9;
        state_ = (state_ ^ state_ >> 27) * 0x94d049bb133111eb;
        state_ ^= state_ >> 31;
    }
    void add(int64_t number) { add(static_cast<uint64_t>(number)); }
    void add(double number) {
        uint64_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        add(bits);
    }
    void add(const std::string& text) {
        add(static_cast<uint64_t>(text.size()));
        for (const char letter : text) add(static_cast<uint64_t>(letter));
    }
    uint64_t value() const { return state_; }

private:
    uint64_t state_ = 0;
};

void add(Hash& hash, const ModelConfig& config) {
    hash.add(config.rms_norm_eps);
    hash.add(config.rotary_scaling);
    for (const float frequency : config.rotary_frequencies) hash.add(static_cast<double>(frequency));
    for (const LayerConfig& layer : config.layers) {
        for (const int64_t size : {layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.intermediate_size}) {
            hash.add(size);
        }
        hash.add(static_cast<int64_t>(layer.activation));
        hash.add(static_cast<int64_t>(layer.gated));
    }
}

using Place = std::pair<const void*, int64_t>;  // of a contiguous tensor

Place place_of(const at::Tensor& tensor) { return {tensor.const_data_ptr(), tensor.numel()}; }

}  // namespace

uint64_t fingerprint_of(const Weights& weights, const Kernels& kernels) {
    std::vector<at::Tensor> tensors;
    std::map<Place, size_t> places;  // so that tied weights are read once
    std::vector<size_t> indices;     // of each parameter's tensor
    for (const auto& [name, tensor] : weights.parameters()) {
        const auto known =
            tensor.is_contiguous() ? places.emplace(place_of(tensor), tensors.size()).first : places.end();
        indices.push_back(known == places.end() ? tensors.size() : known->second);
        if (indices.back() == tensors.size()) tensors.push_back(tensor);
    }
    Context context{weights.device(), kernels.entries};
    std::vector<uint64_t> sums;
    kernels.checksum(context, {tensors, sums});

    Hash hash;
    add(hash, weights.config());
    auto index = indices.begin();
    for (const auto& [name, tensor] : weights.parameters()) {
        hash.add(name);
        hash.add(static_cast<int64_t>(tensor.scalar_type()));
        for (const int64_t size : tensor.sizes()) hash.add(size);
        hash.add(sums[*index++]);
    }
    return hash.value();
}

}  // namespace demiurgic
