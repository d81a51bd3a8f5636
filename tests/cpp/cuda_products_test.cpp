// The CUDA entries but attend, run by the emulator: near the oracle, the same bits for a row whatever rows are computed with
// it, and nothing written but what is theirs. And with many rows on a library that is made up (simt/cublasLt.h).

#include <cublasLt.h>

#include <cstring>
#include <span>

#include "check.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/layers.h"
#include "oracle.h"
#include "simt.h"

namespace demiurgic::test {

namespace {

constexpr int64_t kBlockSize = 16;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Shape {
    const char* name;
    int64_t hidden, heads, kv_heads, d, inner, vocab;
    bool gated, bias, float_norms;
    Activation activation;
    int64_t padding;  // elements between rows of weights; what is not a multiple of 8 leaves rows unaligned
};

// Grouped heads, head dimensions whose half is no multiple of a tile; columns that end inside a piece, a step and a
// chunk, and more than 16 chunks of the least size have; outputs that end inside a tile.
constexpr Shape kShapes[] = {
    {"grouped", 200, 3, 1, 64, 37, 50, true, true, true, Activation::silu, 8},
    {"unaligned", 77, 6, 2, 10, 150, 33, false, false, false, Activation::gelu, 3},
    {"d 128", 64, 1, 1, 128, 48, 32, true, false, false, Activation::relu, 0},
    {"d 80", 96, 2, 2, 80, 90, 17, false, true, true, Activation::silu, 0},
    {"long", 2100, 1, 1, 6, 20, 21, true, false, true, Activation::gelu, 4},
};
constexpr const Shape& kUnaligned = kShapes[1];
constexpr int64_t kMostRows = 130;  // more than one block of the kernel for many rows takes

struct Weight {
    Weight() = default;
    Weight(Type type, int64_t num_rows, int64_t num_columns, const Shape& shape, Random& random)
        : rows(num_rows),
          columns(num_columns),
          stride(columns + shape.padding),
          values(type, (rows - 1) * stride + columns),
          bias(type, shape.bias ? rows : 0) {
        for (int64_t i = 0; i < (rows - 1) * stride + columns; ++i) {
            values.set(i, i % stride >= columns ? kNan : random.between(-1, 1) / std::sqrt(columns));
        }
        for (int64_t i = 0; shape.bias && i < rows; ++i) bias.set(i, random.between(-0.5, 0.5));
    }

    const void* bias_data() const { return bias.floats.empty() && bias.halves.empty() ? nullptr : bias.data(); }
    cuda::Matrix matrix() const { return {rows == 0 ? nullptr : values.data(), stride, bias_data()}; }
    cpu::Matrix oracle() const { return {rows == 0 ? nullptr : values.data(), stride, bias_data(), rows, columns}; }

    int64_t rows = 0, columns = 0, stride = 0;
    Values values, bias;
};

// What an entry changed: the bytes of each row, and for attention_in what it wrote to the cache.
using Rows = std::vector<std::vector<char>>;

std::vector<char> bytes_of(const void* data, size_t count) {
    const auto* begin = static_cast<const char*>(data);
    return {begin, begin + count};
}

// Memory with NaN all over, aligned as CUDA's.
struct Scratch {
    explicit Scratch(int64_t bytes) : memory(static_cast<char*>(::operator new(bytes + 1, std::align_val_t(256)))) {
        std::fill(memory, memory + bytes, static_cast<char>(0xff));
    }
    Scratch(const Scratch&) = delete;
    ~Scratch() { ::operator delete(memory, std::align_val_t(256)); }
    char* memory;
};

// How a step is given to an entry.
struct Way {
    bool from_table = false;   // weights
    bool by_position = false;  // rotary angles
    bool rest = false;         // every other row is at rest
    bool together = false;     // more than 16 rows are normed by the kernel that takes them
    bool rounded = false;      // attended
    unsigned asked = 0;        // with `together`: of each column of blocks, how often others have asked for a row,
    unsigned done = 0;         // and how many they have written: to NaN
};

class Layer {
public:
    Layer(const Shape& s, Type t) : shape(s), type(t) {
        Random random(11);
        norm = Values(s.float_norms ? Type::float32 : t, s.hidden);
        for (int64_t i = 0; i < s.hidden; ++i) norm.set(i, random.between(0.5, 1.5));
        q = Weight(t, s.heads * s.d, s.hidden, s, random);
        k = Weight(t, s.kv_heads * s.d, s.hidden, s, random);
        v = Weight(t, s.kv_heads * s.d, s.hidden, s, random);
        out = Weight(t, s.hidden, s.heads * s.d, s, random);
        if (s.gated) gate = Weight(t, s.inner, s.hidden, s, random);
        up = Weight(t, s.inner, s.hidden, s, random);
        down = Weight(t, s.hidden, s.inner, s, random);
        head = Weight(t, s.vocab, s.hidden, s, random);
        const auto floats = [&](int64_t size, double low, double high) {
            std::vector<float> values(size);
            for (float& value : values) value = static_cast<float>(random.between(low, high));
            return values;
        };
        x = floats(kMostRows * s.hidden, -2, 2);
        attended = floats(kMostRows * s.heads * s.d, -1, 1);
        cos = floats(kMostRows * s.d / 2, -1, 1);
        sin = floats(kMostRows * s.d / 2, -1, 1);
        for (int64_t i = 0; i < kMostRows; ++i) {
            slots.push_back(i * 7 % 160);  // no two alike; a new block now and then
            ids.push_back(random.below(s.vocab));
            positions.push_back(kMostRows - 1 - i);
        }
    }

    // Each runs its entry for rows [first, first + count) alone.
    Rows run_embed(int64_t first, int64_t count, Way way) const {
        std::vector<float> embedded(count * shape.hidden, -7.0f);
        cuda::Live<cuda::EmbedWeights> weights = {{head.values.data(), head.stride}};
        const cuda::EmbedWeights table = weights.value;
        if (way.from_table) weights = {{}, &table};
        std::vector<cuda::Progress> progress(1000, {7, 9});  // more than a block has threads
        run(count, layers().embed,
            cuda::Embed{count, &ids[first], weights, shape.hidden, embedded.data(), progress.data(), 999}, way);
        for (int64_t i = 0; count > 0 && i < 1000; ++i) {
            check((progress[i].taken == 0) == (i < 999) && (progress[i].done == 0) == (i < 999), "what is set to zero");
        }
        return split(embedded, count, shape.hidden);
    }

    Rows run_attention_in(int64_t first, int64_t count, Way way) const {
        const Shape& s = shape;
        Values keys = empty_cache(), values = empty_cache();
        std::vector<float> q_out(count * s.heads * s.d, -7.0f);
        cuda::Live<cuda::AttentionInWeights> weights = {{norm.data(), q.matrix(), k.matrix(), v.matrix()}};
        const cuda::AttentionInWeights table = weights.value;
        if (way.from_table) weights = {{}, &table};
        std::vector<int64_t> to(slots.begin() + first, slots.begin() + first + count);
        for (int64_t i = 1; way.rest && i < count; i += 2) to[i] = -1;
        const auto angles = [&](const std::vector<float>& of_tokens) {
            return way.by_position ? reversed(of_tokens) : &of_tokens[first * s.d / 2];
        };
        run(count, layers().attention_in,
            cuda::AttentionIn{count, &x[first * s.hidden], s.hidden, weights, norm_of(), angles(cos), angles(sin),
                              way.by_position ? &positions[first] : nullptr, to.data(), s.heads, s.kv_heads, s.d,
                              kBlockSize, keys.data(), values.data(), q_out.data()},
            way);
        Rows all = split(q_out, count, s.heads * s.d);
        for (Values* cache : {&keys, &values}) {
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
                    for (int64_t j = 0; j < s.d; ++j) take(*cache, cache_index(slots[first + i], kv_head, j), all[i]);
                }
            }
            for (int64_t i = 0; i < cache_size(); ++i)
                check(std::isnan(cache->at(i)), "only the rows' slots are written");
        }
        return all;
    }

    Rows run_attention_out(int64_t first, int64_t count, Way way) const {
        std::vector<float> sums = some_x(first, count);
        cuda::Live<cuda::AttentionOutWeights> weights = {{out.matrix()}};
        const cuda::AttentionOutWeights table = weights.value;
        if (way.from_table) weights = {{}, &table};
        Values rounded(type, count * out.columns);
        for (int64_t i = 0; i < count * out.columns; ++i) rounded.set(i, attended[first * out.columns + i]);
        const void* from = way.rounded ? rounded.data() : &attended[first * out.columns];
        run(count, layers().attention_out,
            cuda::AttentionOut{count, from, out.columns, weights, shape.hidden, sums.data(), way.rounded}, way);
        return split(sums, count, shape.hidden);
    }

    Rows run_mlp(int64_t first, int64_t count, Way way) const {
        std::vector<float> sums = some_x(first, count);
        cuda::Live<cuda::MlpWeights> weights = {{norm.data(), gate.matrix(), up.matrix(), down.matrix()}};
        const cuda::MlpWeights table = weights.value;
        if (way.from_table) weights = {{}, &table};
        run(count, layers().mlp,
            cuda::Mlp{count, weights, norm_of(), shape.gated, shape.activation, shape.hidden, shape.inner, sums.data()},
            way);
        return split(sums, count, shape.hidden);
    }

    Rows run_head(int64_t first, int64_t count, Way way) const {
        const Scratch memory(count * shape.vocab * static_cast<int64_t>(sizeof(float)));
        auto* logits = reinterpret_cast<float*>(memory.memory);
        cuda::Live<cuda::HeadWeights> weights = {{norm.data(), head.matrix()}};
        const cuda::HeadWeights table = weights.value;
        if (way.from_table) weights = {{}, &table};
        run(count, layers().head,
            cuda::Head{count, &x[first * shape.hidden], shape.hidden, shape.vocab, weights, norm_of(), logits}, way);
        return split({logits, logits + count * shape.vocab}, count, shape.vocab);
    }

    // That `results`, of rows [0, count) of each entry, are near the truth.
    void check_embed(const Rows& results) const {
        std::vector<float> embedded = joined(results);
        oracle().check_embed({ids.data(), count_of(results), head.oracle(), embedded.data()});
    }
    void check_attention_in(const Rows& results) const {
        const Shape& s = shape;
        const int64_t q_bytes = s.heads * s.d * 4, kv_bytes = s.kv_heads * s.d * (type == Type::float32 ? 4 : 2);
        std::vector<float> q_out;
        Values keys(type, cache_size()), values(type, cache_size());
        for (size_t i = 0; i < results.size(); ++i) {
            append_floats(q_out, results[i].data(), s.heads * s.d);
            for (int64_t j = 0; j < s.kv_heads * s.d; ++j) {
                const int64_t kv_head = j / s.d, at = cache_index(slots[i], kv_head, 0), offset = slots[i] % 16;
                const int64_t block = at - offset * s.d;  // of the oracle's keys: [d, 16]
                keys.set(block + j % s.d * 16 + offset, read(type, results[i].data() + q_bytes, j));
                values.set(at + j % s.d, read(type, results[i].data() + q_bytes + kv_bytes, j));
            }
        }
        oracle().check_attention_in({x.data(), count_of(results), cpu_norm(), q.oracle(), k.oracle(), v.oracle(),
                                     cos.data(), sin.data(), slots.data(), s.heads, s.kv_heads, s.d, keys.data(),
                                     values.data(), q_out.data()});
    }
    void check_attention_out(const Rows& results) const {
        std::vector<float> sums = joined(results);
        oracle().check_attention_out({attended.data(), count_of(results), out.oracle(), sums.data()}, x);
    }
    void check_mlp(const Rows& results) const {
        std::vector<float> sums = joined(results);
        oracle().check_mlp(
            {count_of(results), cpu_norm(), gate.oracle(), up.oracle(), down.oracle(), shape.activation, sums.data()},
            x);
    }
    void check_head(const Rows& results) const {
        std::vector<float> logits = joined(results);
        oracle().check_head({x.data(), count_of(results), cpu_norm(), head.oracle(), logits.data()});
    }

    // Of a row of attention_in.
    bool cached_nothing(const std::vector<char>& row) const {
        const int64_t q_bytes = shape.heads * shape.d * 4;
        for (int64_t j = 0; j < 2 * shape.kv_heads * shape.d; ++j) {
            if (!std::isnan(read(type, row.data() + q_bytes, j))) return false;
        }
        return true;
    }

    const Shape& shape;
    const Type type;
    cuda::ProductLibrary* library = nullptr;
    mutable std::vector<cuda::Progress> progress;  // of the last entry that ran

private:
    Oracle oracle() const {
        return {type, type != Type::float32, false, std::string(name_of(type)) + ", " + shape.name};
    }
    const cuda::Layers& layers() const {
        return type == Type::float32    ? cuda::kFloat32Layers
               : type == Type::bfloat16 ? cuda::kBFloat16Layers
                                        : cuda::kFloat16Layers;
    }
    cuda::Norm norm_of() const { return {shape.float_norms || type == Type::float32, 1e-5f}; }
    cpu::Norm cpu_norm() const { return {norm.data(), shape.float_norms || type == Type::float32, 1e-5f}; }

    template <class Args>
    void run(int64_t count, cudaError_t (*entry)(const Args&, const cuda::Launch&), const Args& args, Way way) const {
        const int64_t widest = std::max({shape.hidden, shape.inner, shape.heads * shape.d});
        const Scratch scratch(cuda::scratch_bytes(count, widest, type == Type::float32 ? 4 : 2));
        const Scratch library_scratch(library ? cuda::library_scratch_bytes(count, widest) : 0);
        progress.assign(cuda::num_progress(count), {way.asked, way.done});
        cuda::Launch launch{nullptr, scratch.memory, false, library, library_scratch.memory};
        if (way.together) launch.progress = progress.data();
        check(entry(args, launch) == cudaSuccess, "the launch");
    }

    std::vector<float> some_x(int64_t first, int64_t count) const {
        return {x.begin() + first * shape.hidden, x.begin() + (first + count) * shape.hidden};
    }

    // Rows of angles from the last to the first.
    const float* reversed(const std::vector<float>& of_tokens) const {
        std::vector<float>& all = &of_tokens == &cos ? reversed_cos : reversed_sin;
        all.clear();
        for (const int64_t i : positions)
            all.insert(all.end(), &of_tokens[i * shape.d / 2], &of_tokens[(i + 1) * shape.d / 2]);
        return all.data();
    }

    static Rows split(const std::vector<float>& values, int64_t count, int64_t columns) {
        Rows rows;
        for (int64_t i = 0; i < count; ++i) rows.push_back(bytes_of(&values[i * columns], columns * sizeof(float)));
        return rows;
    }
    static void append_floats(std::vector<float>& to, const char* from, int64_t count) {
        to.resize(to.size() + count);
        std::memcpy(&to[to.size() - count], from, count * sizeof(float));
    }
    static std::vector<float> joined(const Rows& rows) {
        std::vector<float> all;
        for (const std::vector<char>& row : rows) append_floats(all, row.data(), row.size() / sizeof(float));
        return all;
    }
    static int64_t count_of(const Rows& rows) { return static_cast<int64_t>(rows.size()); }

    int64_t cache_size() const { return 10 * shape.kv_heads * kBlockSize * shape.d; }
    int64_t cache_index(int64_t slot, int64_t kv_head, int64_t j) const {
        return ((slot / kBlockSize * shape.kv_heads + kv_head) * kBlockSize + slot % kBlockSize) * shape.d + j;
    }
    Values empty_cache() const {
        Values cache(type, cache_size());
        for (int64_t i = 0; i < cache_size(); ++i) cache.set(i, kNan);
        return cache;
    }
    // Moves an element to `to` and leaves NaN.
    void take(Values& cache, int64_t index, std::vector<char>& to) const {
        const size_t size = type == Type::float32 ? 4 : 2;
        const std::vector<char> element = bytes_of(static_cast<char*>(cache.data()) + index * size, size);
        to.insert(to.end(), element.begin(), element.end());
        cache.set(index, kNan);
    }

    Values norm;
    Weight q, k, v, out, gate, up, down, head;
    std::vector<float> x, attended, cos, sin;
    mutable std::vector<float> reversed_cos, reversed_sin;
    std::vector<int64_t> slots, ids, positions;
};

using Run = Rows (Layer::*)(int64_t first, int64_t count, Way way) const;
struct Entry {
    const char* name;
    Run run;
    void (Layer::*check)(const Rows&) const;
};
constexpr Entry kEntries[] = {
    {"embed", &Layer::run_embed, &Layer::check_embed},
    {"attention_in", &Layer::run_attention_in, &Layer::check_attention_in},
    {"attention_out", &Layer::run_attention_out, &Layer::check_attention_out},
    {"mlp", &Layer::run_mlp, &Layer::check_mlp},
    {"head", &Layer::run_head, &Layer::check_head},
};

void check_same(const Rows& got, const Rows& expected, int64_t first, const std::string& what) {
    for (size_t i = 0; i < got.size(); ++i) {
        check(got[i] == expected[first + i], what + ": row " + std::to_string(first + static_cast<int64_t>(i)));
    }
}

// Of one shape, or of all in bfloat16 and float32 and one in float16, whose code is that of bfloat16.
template <class F>
void for_each_case(const F& test, const Shape* only = nullptr) {
    for (const Shape& shape : kShapes) {
        if (only && only != &shape) continue;
        for (const Type type : kTypes) {
            if (!only && type == Type::float16 && &shape != &kShapes[0]) continue;
            Layer layer(shape, type);
            for (const Entry& entry : kEntries) {
                test(layer, entry, std::string(name_of(type)) + ", " + shape.name + ", " + entry.name);
            }
        }
    }
}

// One, two and four columns of tokens; one block of them and several; the kernel for many rows, one block and two.
constexpr int64_t kCounts[] = {1, 2, 7, 8, 9, 16, 17, 33, 65}, kFewCounts[] = {1, 9, 17, 65};

void near_the_oracle_and_the_same_bits_for_any_number_of_rows() {
    for_each_case([](const Layer& layer, const Entry& entry, const std::string& what) {
        const Rows all = (layer.*entry.run)(0, kMostRows, {});
        (layer.*entry.check)(Rows(all.begin(), all.begin() + 6));
        const bool is_first = &layer.shape == &kShapes[0];
        for (const int64_t count : is_first ? std::span<const int64_t>(kCounts) : kFewCounts) {
            const int64_t first = (count * 29) % (kMostRows - count);
            check_same((layer.*entry.run)(first, count, {}), all, first, what + ", " + std::to_string(count) + " rows");
        }
    });
}

void a_row_at_rest_writes_nothing_to_the_cache() {
    for (const Type type : kTypes) {
        const Layer layer(kUnaligned, type);
        const Rows expected = layer.run_attention_in(0, 20, {}), rows = layer.run_attention_in(0, 20, {.rest = true});
        for (size_t i = 0; i < rows.size(); ++i) {
            check(i % 2 == 0 ? rows[i] == expected[i] : layer.cached_nothing(rows[i]), "row " + std::to_string(i));
        }
    }
}

void weights_through_a_table() {
    for_each_case(
        [](const Layer& layer, const Entry& entry, const std::string& what) {
            check_same((layer.*entry.run)(0, 3, {.from_table = true}), (layer.*entry.run)(0, 3, {}), 0, what);
        },
        &kUnaligned);
}

void rotary_angles_by_position() {
    const Layer layer(kUnaligned, Type::bfloat16);
    for (const int64_t count : {3, 70}) {
        check_same(layer.run_attention_in(5, count, {.by_position = true}), layer.run_attention_in(5, count, {}), 0,
                   "");
    }
}

const std::vector<int64_t> kSomeCounts = {17, 66};

bool norms(const Entry& entry) { return entry.run != &Layer::run_embed && entry.run != &Layer::run_attention_out; }

// Rows that the kernel of a product norms as well, each once; and attended rows that come as attention writes them.
void what_a_kernel_prepares_has_the_same_bits() {
    for_each_case([](const Layer& layer, const Entry& entry, const std::string& what) {
        const Rows all = (layer.*entry.run)(0, kMostRows, {});
        const bool is_first = &layer.shape == &kShapes[0];
        for (const int64_t count : is_first ? std::vector<int64_t>{9, 17, 33, 64, 65, kMostRows} : kSomeCounts) {
            simt::order = count % 2 ? simt::Order::backward : simt::Order::forward;
            const int before = simt::num_launches;
            const Rows rows = (layer.*entry.run)(0, count, {.together = true, .rounded = true});
            simt::order = simt::Order::forward;
            check_same(rows, all, 0, what + ", " + std::to_string(count) + " rows");
            check(simt::num_launches - before == (entry.run == &Layer::run_mlp ? 2 : 1), what + ": kernels");
            unsigned num_done = 0;
            for (const auto& [taken, done] : layer.progress) num_done += done;
            check(num_done == (norms(entry) && count > 16 ? count : 0), what + ": each row is normed once");
        }
    });
}

// Rows that other blocks have taken are theirs; all others are written.
void rows_that_others_have_taken_are_left_to_them() {
    const Layer layer(kUnaligned, Type::bfloat16);
    for (const int64_t count : {20, 70}) {  // up to 32 rows share a progress, and up to 128
        const Rows expected = layer.run_head(0, count, {});
        for (const unsigned done : {1u, 5u, static_cast<unsigned>(count)}) {
            const unsigned asked = done == count ? done + 3 : done;  // in vain
            const Rows rows = layer.run_head(0, count, {.together = true, .asked = asked, .done = done});
            for (int64_t i = 0; i < count; ++i) {
                const bool is_ours = i >= done;
                check(is_ours ? rows[i] == expected[i] : std::isnan(read(Type::float32, rows[i].data(), 0)),
                      std::to_string(done) + " rows are done, row " + std::to_string(i));
            }
            check(layer.progress[0].done == count, "not all rows are done");
        }
    }
}

void the_order_of_threads_does_not_show() {
    for_each_case(
        [](const Layer& layer, const Entry& entry, const std::string& what) {
            for (const int64_t count : {3, 20, 70}) {
                simt::order = simt::Order::forward;
                const Rows forward = (layer.*entry.run)(0, count, {});
                simt::order = simt::Order::backward;
                check_same((layer.*entry.run)(0, count, {}), forward, 0, what);
                simt::order = simt::Order::forward;
            }
        },
        &kUnaligned);
}

constexpr int64_t kManyRows = 70;

// Products that the library does for an entry.
int products_of(const Layer& layer, const Entry& entry) {
    const std::string name = entry.name;
    if (name == "embed") return 0;
    return name == "attention_in" ? 3 : name == "mlp" ? 2 + layer.shape.gated : 1;
}

void many_rows_by_a_library() {
    for_each_case([](Layer& layer, const Entry& entry, const std::string& what) {
        const Rows ours = (layer.*entry.run)(0, kManyRows, {});
        {
            const auto library = cuda::make_cublaslt();
            layer.library = library.get();
            fake_cublaslt::num_products = 0;
            const Rows rows = (layer.*entry.run)(0, kManyRows, {.together = true});  // which the library cannot
            check(fake_cublaslt::num_products == products_of(layer, entry),
                  what + ": other products are the library's");
            (layer.*entry.check)(rows);
            check((rows == ours) == (products_of(layer, entry) == 0), what + ": the order of summation is not its own");

            fake_cublaslt::num_products = 0;
            check_same((layer.*entry.run)(0, 64, {}), ours, 0, what + ", 64 rows");
            check(fake_cublaslt::num_products == 0, what + ": few rows are the library's");
            layer.library = nullptr;
        }
        check(fake_cublaslt::num_alive == 0, what + ": descriptors are left");
    });
}

// Whole entries: a part of what it does not do is not done either.
void what_a_library_refuses_is_ours() {
    const auto before = fake_cublaslt::refuses;
    for_each_case(
        [](Layer& layer, const Entry& entry, const std::string& what) {
            const Rows ours = (layer.*entry.run)(0, kManyRows, {});
            const auto library = cuda::make_cublaslt();
            const auto kv_outputs = static_cast<uint64_t>(layer.shape.kv_heads * layer.shape.d);
            layer.library = library.get();
            fake_cublaslt::refuses = [](uint64_t, uint64_t) { return true; };
            check_same((layer.*entry.run)(0, kManyRows, {}), ours, 0, what);
            const auto other = cuda::make_cublaslt();  // which has been asked nothing yet
            layer.library = other.get();
            fake_cublaslt::refuses = [kv_outputs](uint64_t m, uint64_t) { return m == kv_outputs; };
            if (entry.run == &Layer::run_attention_in) check_same((layer.*entry.run)(0, kManyRows, {}), ours, 0, what);
            layer.library = nullptr;
        },
        &kUnaligned);
    fake_cublaslt::refuses = before;
}

void a_library_is_asked_once_a_shape() {
    Layer layer(kShapes[0], Type::bfloat16);
    const auto library = cuda::make_cublaslt();
    layer.library = library.get();
    fake_cublaslt::num_heuristics = 0;
    const auto asked_after = [&](int64_t count) {
        layer.run_head(0, count, {});
        return fake_cublaslt::num_heuristics;
    };
    check(asked_after(70) == 1 && asked_after(70) == 1, "it is asked again");
    check(asked_after(71) == 2 && asked_after(70) == 2, "another number of rows is another shape");
}

void a_row_at_rest_writes_nothing_by_a_library_either() {
    Layer layer(kUnaligned, Type::bfloat16);
    const auto library = cuda::make_cublaslt();
    layer.library = library.get();
    const Rows expected = layer.run_attention_in(0, kManyRows, {});
    const Rows rows = layer.run_attention_in(0, kManyRows, {.rest = true});
    for (size_t i = 0; i < rows.size(); ++i) {
        check(i % 2 == 0 ? rows[i] == expected[i] : layer.cached_nothing(rows[i]), "row " + std::to_string(i));
    }
}

void an_error_of_a_library_is_told() {
    Layer layer(kUnaligned, Type::bfloat16);
    const auto library = cuda::make_cublaslt();
    layer.library = library.get();
    fake_cublaslt::fails = true;
    bool told = false;
    try {
        layer.run_mlp(0, kManyRows, {});
    } catch (const std::runtime_error&) {  // of the check of what the launch returned
        told = true;
    }
    fake_cublaslt::fails = false;
    check(told, "a product that failed is no error");
}

void no_rows() {
    for_each_case([](const Layer& layer, const Entry& entry,
                     const std::string& what) { check((layer.*entry.run)(0, 0, {}).empty(), what); },
                  &kUnaligned);
}

}  // namespace

}  // namespace demiurgic::test

int main(int, char** arguments) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"near the oracle, and the same bits for any number of rows",
             near_the_oracle_and_the_same_bits_for_any_number_of_rows},
            {"a row at rest writes nothing to the cache", a_row_at_rest_writes_nothing_to_the_cache},
            {"what a kernel prepares has the same bits", what_a_kernel_prepares_has_the_same_bits},
            {"rows that others have taken are left to them", rows_that_others_have_taken_are_left_to_them},
            {"weights through a table", weights_through_a_table},
            {"rotary angles by position", rotary_angles_by_position},
            {"the order of threads does not show", the_order_of_threads_does_not_show},
            {"many rows by a library", many_rows_by_a_library},
            {"what a library refuses is ours", what_a_library_refuses_is_ours},
            {"a library is asked once a shape", a_library_is_asked_once_a_shape},
            {"a row at rest writes nothing by a library either", a_row_at_rest_writes_nothing_by_a_library_either},
            {"an error of a library is told", an_error_of_a_library_is_told},
            {"no rows", no_rows},
        },
        arguments[1]);
}
