#include "fingerprint.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>

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

}  // namespace

uint64_t fingerprint_of(const Weights& weights, const Kernels& kernels) {
    Hash hash;
    add(hash, weights.config());
    Context context{weights.device(), kernels.entries};
    std::map<std::pair<const void*, int64_t>, uint64_t> sums;  // of whole tensors: tied ones are read once
    for (const auto& [name, tensor] : weights.parameters()) {
        const std::pair place{tensor.const_data_ptr(), tensor.numel()};
        const bool whole = tensor.is_contiguous();
        uint64_t sum = 0;
        if (const auto known = sums.find(place); whole && known != sums.end()) {
            sum = known->second;
        } else {
            kernels.checksum(context, {tensor, sum});
            if (whole) sums.emplace(place, sum);
        }
        hash.add(name);
        hash.add(static_cast<int64_t>(tensor.scalar_type()));
        for (const int64_t size : tensor.sizes()) hash.add(size);
        hash.add(sum);
    }
    return hash.value();
}

}  // namespace demiurgic
