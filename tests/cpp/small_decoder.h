#pragma once

// A decoder over plain memory, run by a team of std::threads: what csrc/decoder.cpp is over tensors and OpenMP. All that
// the kernels may not read holds NaN: the padding between rows of weights, the cache before it is written, the scratch.

#include <cmath>
#include <functional>
#include <limits>
#include <new>
#include <thread>
#include <utility>

#include "kernels/cpu/isa.h"
#include "numbers.h"

namespace demiurgic::test {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct ModelShape {
    const char* name;
    int64_t hidden, heads, kv_heads, d, inner, vocab, num_layers;
    bool gated, bias, float_norms;
    Activation activation;
};

struct Product {
    Product() = default;
    Product(Type type, int64_t num_rows, int64_t num_columns, bool has_bias, Random& random)
        : rows(num_rows),
          columns(num_columns),
          stride(columns + 3),
          weight(type, (rows - 1) * stride + columns),
          bias(type, has_bias ? rows : 0) {
        for (size_t i = 0; i < std::max(weight.floats.size(), weight.halves.size()); ++i) {
            const bool is_padding = static_cast<int64_t>(i) % stride >= columns;
            weight.set(static_cast<int64_t>(i), is_padding ? kNan : random.between(-1, 1) / std::sqrt(columns));
        }
        for (int64_t i = 0; has_bias && i < rows; ++i) bias.set(i, random.between(-0.5, 0.5));
    }

    cpu::Matrix matrix() const {
        const bool has_bias = !bias.floats.empty() || !bias.halves.empty();
        return {rows == 0 ? nullptr : weight.data(), stride, has_bias ? bias.data() : nullptr, rows, columns};
    }

    int64_t rows = 0, columns = 0, stride = 0;
    Values weight, bias;
};

struct Model {
    struct Layer {
        Values attention_norm, mlp_norm;
        Product q, k, v, out, gate, up, down;
    };

    Model(const ModelShape& s, Type t) : shape(s), type(t) {
        Random random(7);
        const auto norm = [&] {
            Values values(s.float_norms ? Type::float32 : t, s.hidden);
            for (int64_t i = 0; i < s.hidden; ++i) values.set(i, random.between(0.5, 1.5));
            return values;
        };
        embedding = Product(t, s.vocab, s.hidden, false, random);
        for (int64_t i = 0; i < s.num_layers; ++i) {
            Layer& layer = layers.emplace_back();
            layer.attention_norm = norm();
            layer.mlp_norm = norm();
            layer.q = Product(t, s.heads * s.d, s.hidden, s.bias, random);
            layer.k = Product(t, s.kv_heads * s.d, s.hidden, s.bias, random);
            layer.v = Product(t, s.kv_heads * s.d, s.hidden, s.bias, random);
            layer.out = Product(t, s.hidden, s.heads * s.d, s.bias, random);
            if (s.gated) layer.gate = Product(t, s.inner, s.hidden, s.bias, random);
            layer.up = Product(t, s.inner, s.hidden, s.bias, random);
            layer.down = Product(t, s.hidden, s.inner, s.bias, random);
        }
        final_norm = norm();
        head = Product(t, s.vocab, s.hidden, s.bias, random);
    }

    int64_t token(int64_t sequence, int64_t position) const {
        return Random(static_cast<uint64_t>(sequence * 100003 + position)).below(shape.vocab);
    }

    ModelShape shape;
    Type type;
    Product embedding, head;
    std::vector<Layer> layers;
    Values final_norm;
};

inline const cpu::Entries& entries_of(const cpu::Isa& isa, Type type) {
    return type == Type::float32 ? isa.float32 : type == Type::bfloat16 ? isa.bfloat16 : isa.float16;
}

// Runs `work` as every member of a team.
inline void run_team(int num_threads, const std::function<void(cpu::Team&, int index)>& work) {
    cpu::Team team(num_threads);
    std::vector<std::thread> others;
    const auto member = [&](int index) { team.run_member([&] { work(team, index); }); };
    for (int i = 1; i < num_threads; ++i) others.emplace_back(member, i);
    member(0);
    for (std::thread& other : others) other.join();
    team.rethrow();
}

// Scratch as the engine gives it, of exactly that size.
class Memory {
public:
    explicit Memory(int64_t bytes) : data_(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {
        std::fill(data_, data_ + bytes, static_cast<char>(0xff));  // NaN in every type
    }
    Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    ~Memory() { ::operator delete(data_, std::align_val_t(64)); }

    char* data() { return data_; }

private:
    char* data_;
};

// The tokens [start, start + count) of one sequence.
struct Part {
    int64_t sequence, start, count;
};

// What calls an entry of the table with its arguments; for tests that look at single entries.
template <class Args>
using Entry = void (*cpu::Entries::*)(const cpu::Member&, const Args&);

class SmallDecoder {
public:
    SmallDecoder(const cpu::Entries& entries, const Model& model, int num_threads, int64_t num_sequences,
                 int64_t longest)
        : entries_(entries), model_(model), num_threads_(num_threads), num_sequences_(num_sequences) {
        const int64_t num_blocks = num_sequences * blocks_for(longest);
        for (int64_t i = 0; i < model.shape.num_layers; ++i) {
            for (std::vector<Values>* cache : {&keys_, &values_}) {
                Values& values =
                    cache->emplace_back(model.type, num_blocks * model.shape.kv_heads * kBlock * model.shape.d);
                for (int64_t j = 0; j < num_blocks * model.shape.kv_heads * kBlock * model.shape.d; ++j)
                    values.set(j, kNan);
            }
        }
    }

    // The logits [tokens of all parts, vocab] of one step.
    std::vector<float> step(const std::vector<Part>& parts) {
        return step(parts, [](const cpu::Entries& entries, const cpu::Member& member, auto entry, const auto& args) {
            (entries.*entry)(member, args);
        });
    }

    template <class Call>
    std::vector<float> step(const std::vector<Part>& parts, const Call& call) {
        const Batch batch = batch_of(parts);
        const ModelShape& s = model_.shape;
        const StepShape shape{batch.num_tokens, batch.context_length, std::max({s.hidden, s.heads * s.d, s.inner}),
                              s.d};
        const cpu::Scratch scratch = entries_.scratch(shape, num_threads_);
        Memory shared(scratch.shared);
        std::vector<Memory> own;
        for (int i = 0; i < num_threads_; ++i) own.emplace_back(scratch.own);
        Activations out(s, batch.num_tokens);
        run_team(num_threads_, [&](cpu::Team& team, int index) {
            // Changes how weights are fetched, and no bit: teams of an even size fetch them one way, others the other.
            const bool weights_in_cache = num_threads_ % 2 == 0;
            const cpu::Member member{&team, index, shared.data(), own[index].data(), weights_in_cache};
            walk(batch, out, [&](auto entry, const auto& args) { call(entries_, member, entry, args); });
        });
        return out.logits;
    }

private:
    static constexpr int64_t kBlock = 16;

    struct Batch {
        int64_t num_tokens = 0, context_length = 0, most_blocks = 0;
        std::vector<int64_t> tokens, slots, block_table;
        std::vector<float> cos, sin;
        std::vector<BatchRow> rows;
    };

    struct Activations {
        Activations(const ModelShape& s, int64_t n)
            : x(n * s.hidden), q(n * s.heads * s.d), attended(n * s.heads * s.d), logits(n * s.vocab) {}

        std::vector<float> x, q, attended, logits;
    };

    static int64_t blocks_for(int64_t num_tokens) { return (num_tokens + kBlock - 1) / kBlock; }
    int64_t block_of(int64_t sequence, int64_t index) const { return index * num_sequences_ + sequence; }

    Batch batch_of(const std::vector<Part>& parts) const {
        Batch batch;
        const int64_t half = model_.shape.d / 2;
        for (const Part& part : parts) {
            const int64_t end = part.start + part.count;
            batch.rows.push_back({batch.num_tokens, part.count, end});
            batch.num_tokens += part.count;
            batch.context_length = std::max(batch.context_length, end);
            for (int64_t position = part.start; position < end; ++position) {
                batch.tokens.push_back(model_.token(part.sequence, position));
                batch.slots.push_back(block_of(part.sequence, position / kBlock) * kBlock + position % kBlock);
                for (int64_t i = 0; i < half; ++i) {
                    const double angle = static_cast<double>(position) *
                                         std::pow(100.0, -static_cast<double>(i) / static_cast<double>(half));
                    batch.cos.push_back(static_cast<float>(std::cos(angle)));
                    batch.sin.push_back(static_cast<float>(std::sin(angle)));
                }
            }
        }
        batch.most_blocks = blocks_for(batch.context_length);
        for (const Part& part : parts) {
            const int64_t used = blocks_for(part.start + part.count);
            for (int64_t i = 0; i < batch.most_blocks; ++i)
                batch.block_table.push_back(i < used ? block_of(part.sequence, i) : 0);
        }
        return batch;
    }

    static cpu::Norm norm_of(const Values& values) { return {values.data(), values.type == Type::float32, 1e-5f}; }

    // One member's way through the layers.
    template <class Call>
    void walk(const Batch& batch, Activations& out, const Call& call) {
        using cpu::Entries;
        const ModelShape& s = model_.shape;
        const int64_t n = batch.num_tokens;
        const float scale = 1.0f / std::sqrt(static_cast<float>(s.d));
        float *x = out.x.data(), *q = out.q.data(), *attended = out.attended.data();
        call(&Entries::embed, cpu::Embed{batch.tokens.data(), n, model_.embedding.matrix(), x});
        for (size_t i = 0; i < model_.layers.size(); ++i) {
            const Model::Layer& layer = model_.layers[i];
            void *keys = keys_[i].data(), *values = values_[i].data();
            call(&Entries::attention_in,
                 cpu::AttentionIn{x, n, norm_of(layer.attention_norm), layer.q.matrix(), layer.k.matrix(),
                                  layer.v.matrix(), batch.cos.data(), batch.sin.data(), batch.slots.data(), s.heads,
                                  s.kv_heads, s.d, keys, values, q});
            call(&Entries::attend,
                 cpu::Attend{q, keys, values, batch.rows.data(), static_cast<int64_t>(batch.rows.size()),
                             batch.block_table.data(), batch.most_blocks, s.heads, s.kv_heads, s.d, scale, attended});
            call(&Entries::attention_out, cpu::AttentionOut{attended, n, layer.out.matrix(), x});
            call(&Entries::mlp, cpu::Mlp{n, norm_of(layer.mlp_norm), layer.gate.matrix(), layer.up.matrix(),
                                         layer.down.matrix(), s.activation, x});
        }
        call(&Entries::head, cpu::Head{x, n, norm_of(model_.final_norm), model_.head.matrix(), out.logits.data()});
    }

    const cpu::Entries& entries_;
    const Model& model_;
    const int num_threads_;
    const int64_t num_sequences_;
    std::vector<Values> keys_, values_;  // by layer: [blocks, kv_heads, d, 16] and [blocks, kv_heads, 16, d]
};

}  // namespace demiurgic::test
