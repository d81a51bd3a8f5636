// The entries of every instruction set that this machine has: near the oracle, and the same bits however a prompt is cut,
// batched and shared among threads. Runs under qemu for the sets of other machines (run.sh).

#include <bit>
#include <cstring>

#include "check.h"
#include "oracle.h"
#include "small_decoder.h"

namespace demiurgic::test {

namespace {

// Odd sizes; grouped heads, single ones, and more to a key head than a tile of queries holds; products of more columns
// than a block of K has.
constexpr ModelShape kShapes[] = {
    {"grouped", 70, 6, 2, 10, 37, 101, 2, true, true, true, Activation::silu},
    {"plain", 64, 4, 4, 16, 176, 131, 2, false, false, false, Activation::gelu},
    {"one key head", 50, 20, 1, 6, 33, 49, 1, true, false, false, Activation::relu},
    {"long", 38, 2, 1, 74, 2100, 35, 1, true, true, false, Activation::silu},
};

std::vector<int64_t> lengths_of(const ModelShape& shape) {
    if (shape.inner > 1000) return {1, 23, 111};
    if (shape.num_layers == 1) return {1, 29, 150};
    return {1, 29, shape.bias ? 531 : 90};
}

// Runs `test` for every set that runs here, type and shape; what it throws begins with which.
template <class F>
void for_each_case(const F& test) {
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (!isa->runs_here()) continue;
        for (const Type type : kTypes) {
            for (const ModelShape& shape : kShapes) {
                test(*isa, type, shape, std::string(isa->name) + ", " + name_of(type) + ", " + shape.name);
            }
        }
    }
}

// Logits of all tokens, [sequences][tokens * vocab], as steps give them.
class Collected {
public:
    Collected(SmallDecoder& decoder, const Model& model, size_t num_sequences)
        : decoder_(decoder), vocab_(model.shape.vocab), logits_(num_sequences) {}

    void step(const std::vector<Part>& parts) {
        const std::vector<float> logits = decoder_.step(parts);
        auto next = logits.begin();
        for (const Part& part : parts) {
            const auto end = next + part.count * vocab_;
            logits_[part.sequence].insert(logits_[part.sequence].end(), next, end);
            next = end;
        }
    }

    const std::vector<std::vector<float>>& logits() const { return logits_; }

private:
    SmallDecoder& decoder_;
    const int64_t vocab_;
    std::vector<std::vector<float>> logits_;
};

using Walk = void (*)(Collected&, const std::vector<int64_t>& lengths);

void one_by_one(Collected& steps, const std::vector<int64_t>& lengths) {
    for (size_t i = 0; i < lengths.size(); ++i) steps.step({{static_cast<int64_t>(i), 0, lengths[i]}});
}

void all_at_once(Collected& steps, const std::vector<int64_t>& lengths) {
    std::vector<Part> parts;
    for (size_t i = lengths.size(); i-- > 0;) parts.push_back({static_cast<int64_t>(i), 0, lengths[i]});
    steps.step(parts);
}

// Of each sequence another number of tokens.
void in_chunks(Collected& steps, const std::vector<int64_t>& lengths) {
    std::vector<int64_t> done(lengths.size());
    for (int64_t i = 0;; ++i) {
        std::vector<Part> parts;
        for (size_t j = 0; j < lengths.size(); ++j) {
            const int64_t sequence = static_cast<int64_t>(j);
            const int64_t count = std::min(lengths[j] - done[j], 1 + (i * 5 + sequence * 3) % 23);
            if (count > 0) parts.push_back({sequence, done[j], count});
            done[j] += count;
        }
        if (parts.empty()) return;
        steps.step(parts);
    }
}

// As decode does: all but the last 40 tokens at once, then one at a time.
void token_by_token(Collected& steps, const std::vector<int64_t>& lengths) {
    for (size_t i = 0; i < lengths.size(); ++i) {
        const int64_t sequence = static_cast<int64_t>(i), at_once = std::max<int64_t>(0, lengths[i] - 40);
        if (at_once > 0) steps.step({{sequence, 0, at_once}});
        for (int64_t j = at_once; j < lengths[i]; ++j) steps.step({{sequence, j, 1}});
    }
}

std::vector<std::vector<float>> logits_of(const cpu::Isa& isa, const Model& model, int num_threads, Walk walk) {
    const std::vector<int64_t> lengths = lengths_of(model.shape);
    SmallDecoder decoder(entries_of(isa, model.type), model, num_threads, static_cast<int64_t>(lengths.size()),
                         lengths.back());
    Collected steps(decoder, model, lengths.size());
    walk(steps, lengths);
    return steps.logits();
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void the_same_bits_in_any_batch_and_by_any_team() {
    struct Way {
        const char* name;
        Walk walk;
        int num_threads;
    };
    constexpr Way kWays[] = {
        {"one by one, 2 threads", one_by_one, 2},         {"all at once, 1 thread", all_at_once, 1},
        {"all at once, 3 threads", all_at_once, 3},       {"in chunks, 1 thread", in_chunks, 1},
        {"in chunks, 2 threads", in_chunks, 2},           {"token by token, 1 thread", token_by_token, 1},
        {"token by token, 2 threads", token_by_token, 2},
    };
    for_each_case([&](const cpu::Isa& isa, Type type, const ModelShape& shape, const std::string& what) {
        const Model model(shape, type);
        const std::vector<std::vector<float>> alone = logits_of(isa, model, 1, one_by_one);
        for (const Way& way : kWays) {
            const std::vector<std::vector<float>> other = logits_of(isa, model, way.num_threads, way.walk);
            for (size_t i = 0; i < alone.size(); ++i) {
                check(same_bits(alone[i], other[i]),
                      what + ": other bits in sequence " + std::to_string(i) + " " + way.name);
            }
        }
    });
}

// Every entry's result, from the very numbers that it was given.
void every_entry_is_near_the_oracle() {
    for_each_case([](const cpu::Isa& isa, Type type, const ModelShape& shape, const std::string& what) {
        const bool is_bfloat16 = type == Type::bfloat16, has_dot = std::strcmp(isa.name, "avx512_bf16") == 0;
        const bool has_tiles = std::strcmp(isa.name, "amx") == 0;
        const Oracle oracle(type, is_bfloat16 && (has_dot || has_tiles), is_bfloat16 && has_dot, what);
        const Model model(shape, type);
        SmallDecoder decoder(entries_of(isa, type), model, 1, 2, 300);
        const auto call = [&](const cpu::Entries& entries, const cpu::Member& member, auto entry, const auto& args) {
            using Args = std::remove_cvref_t<decltype(args)>;
            if constexpr (std::is_same_v<Args, cpu::AttentionOut> || std::is_same_v<Args, cpu::Mlp>) {
                const std::vector<float> before(args.x, args.x + args.num_tokens * shape.hidden);
                (entries.*entry)(member, args);
                if constexpr (std::is_same_v<Args, cpu::Mlp>) {
                    oracle.check_mlp(args, before);
                } else {
                    oracle.check_attention_out(args, before);
                }
            } else {
                (entries.*entry)(member, args);
                if constexpr (std::is_same_v<Args, cpu::Embed>) oracle.check_embed(args);
                if constexpr (std::is_same_v<Args, cpu::AttentionIn>) oracle.check_attention_in(args);
                if constexpr (std::is_same_v<Args, cpu::Attend>) oracle.check_attend(args);
                if constexpr (std::is_same_v<Args, cpu::Head>) oracle.check_head(args);
            }
        };
        const int64_t length = shape.inner > 1000 ? 5 : 250;
        decoder.step({{0, 0, length}});
        decoder.step({{0, length, 10}}, call);
        decoder.step({{0, length + 10, 1}}, call);
        decoder.step({{1, 0, 3}, {0, length + 11, 2}}, call);
        decoder.step({{1, 3, 8}}, call);    // the largest single tile
        decoder.step({{1, 11, 21}}, call);  // whose keys end a block and fill one
    });
}

void sets_agree_with_the_portable_one() {
    for_each_case([](const cpu::Isa& isa, Type type, const ModelShape& shape, const std::string& what) {
        const Model model(shape, type);
        const double bound = type == Type::float32   ? 2e-5
                             : type == Type::float16 ? 4e-3
                                                     : 8e-2;  // rounded in the cache
        const auto ours = logits_of(isa, model, 1, all_at_once);
        const auto portable = logits_of(*cpu::built_isas().back(), model, 1, all_at_once);
        double most = 0;
        for (size_t i = 0; i < ours.size(); ++i) {
            for (size_t k = 0; k < ours[i].size(); ++k) {
                const double difference = std::fabs(ours[i][k] - portable[i][k]);
                most = std::max(most, std::isnan(difference) ? INFINITY : difference);
            }
        }
        check(most <= bound, what + ": a logit differs by " + std::to_string(most) + " from the portable set's");
    });
}

// Every number of 16 bits is read as what it is.
void every_number_is_read_exactly() {
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (!isa->runs_here()) continue;
        for (const Type type : {Type::bfloat16, Type::float16}) {
            Values table(type, 65536);
            std::vector<int64_t> tokens;
            for (int64_t i = 0; i < 65536; ++i) table.halves[i] = static_cast<uint16_t>(i);
            for (int64_t i = 0; i < 64; ++i) tokens.push_back(i);
            std::vector<float> out(65536);
            run_team(1, [&](cpu::Team& team, int) {
                const cpu::Member member{&team, 0, nullptr, nullptr};
                entries_of(*isa, type)
                    .embed(member, {tokens.data(), 64, {table.data(), 1024, nullptr, 64, 1024}, out.data()});
            });
            for (int64_t i = 0; i < 65536; ++i) {
                const double expected = table.at(i), got = static_cast<double>(out[i]);
                check(std::isnan(expected) ? std::isnan(got)
                                           : got == expected && std::signbit(got) == std::signbit(expected),
                      std::string(isa->name) + ": the " + name_of(type) + " of bits " + std::to_string(i) +
                          " is read as " + std::to_string(got));
            }
        }
    }
}

// With one set of weights for q, k and v and no rotation, the cache holds q_out, rounded.
void numbers_are_rounded_to_the_nearest() {
    constexpr int64_t kTokens = 16, kHidden = 32, kRows = 26;
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (!isa->runs_here()) continue;
        for (const Type type : {Type::bfloat16, Type::float16}) {
            Random random(11);
            Product weights(type, kRows, kHidden, false, random);
            std::vector<float> x(kTokens * kHidden), cos(kTokens * kRows / 2, 1.0f), sin(kTokens * kRows / 2, 0.0f),
                q(kTokens * kRows);
            for (float& value : x)
                value = static_cast<float>(std::ldexp(random.between(-1, 1), static_cast<int>(random.below(20))));
            Values norm(Type::float32, kHidden), keys(type, kRows * 16), values(type, kRows * 16);
            const int64_t exponents[] = {15, 2, -20, -26};  // beyond what float16 has, usual, its subnormal numbers
            std::vector<int64_t> slots;
            for (int64_t i = 0; i < kTokens; ++i) slots.push_back(i);
            for (const int64_t exponent : exponents) {
                for (int64_t i = 0; i < kHidden; ++i)
                    norm.set(i, std::ldexp(random.between(1, 2), static_cast<int>(exponent)));
                const cpu::Entries& entries = entries_of(*isa, type);
                const cpu::Scratch scratch = entries.scratch({kTokens, kTokens, kHidden, kRows}, 1);
                Memory shared(scratch.shared), own(scratch.own);
                run_team(1, [&](cpu::Team& team, int) {
                    const cpu::Member member{&team, 0, shared.data(), own.data()};
                    const cpu::Matrix w = weights.matrix();
                    entries.attention_in(member, {x.data(),
                                                  kTokens,
                                                  {norm.data(), true, 1e-5f},
                                                  w,
                                                  w,
                                                  w,
                                                  cos.data(),
                                                  sin.data(),
                                                  slots.data(),
                                                  1,
                                                  1,
                                                  kRows,
                                                  keys.data(),
                                                  values.data(),
                                                  q.data()});
                });
                for (int64_t i = 0; i < kTokens * kRows; ++i) {
                    const uint16_t expected = format_of(type).encode(static_cast<double>(q[i]));
                    const int64_t token = i / kRows, k = i % kRows;
                    check(values.halves[i] == expected && keys.halves[k * 16 + token] == expected,
                          std::string(isa->name) + ", " + name_of(type) + ": " + std::to_string(q[i]) +
                              " is kept as bits " + std::to_string(values.halves[i]) + ", not " +
                              std::to_string(expected));
                }
            }
        }
    }
}

// W [kRows, kColumns] times each of `num_rows` rows of `values`: [num_rows, kRows].
template <int64_t kRows, int64_t kColumns>
std::vector<float> products_of(const cpu::Isa& isa, const Values& weights, Type type, const std::vector<float>& values,
                               int64_t num_rows) {
    const cpu::Entries& entries = entries_of(isa, type);
    const cpu::Scratch scratch = entries.scratch({num_rows, num_rows, kColumns, kRows}, 1);
    Memory shared(scratch.shared), own(scratch.own);
    std::vector<float> x(num_rows * kRows);
    run_team(1, [&](cpu::Team& team, int) {
        const cpu::Member member{&team, 0, shared.data(), own.data()};
        const cpu::Matrix w{weights.data(), kColumns, nullptr, kRows, kColumns};
        entries.attention_out(member, {values.data(), num_rows, w, x.data()});
    });
    return x;
}

// Tiles of every height, at widths that none of them divides.
void any_number_of_rows_has_the_bits_of_each() {
    constexpr int64_t kMost = 98, kRows = 47, kColumns = 301;
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (!isa->runs_here()) continue;
        for (const Type type : kTypes) {
            Random random(3);
            Values weights(type, kRows * kColumns);
            for (int64_t i = 0; i < kRows * kColumns; ++i) weights.set(i, random.between(-1, 1));
            std::vector<float> values(kMost * kColumns), alone;
            for (float& value : values) value = static_cast<float>(random.between(-1, 1));
            for (int64_t i = 0; i < kMost; ++i) {
                const std::vector<float> row(values.begin() + i * kColumns, values.begin() + (i + 1) * kColumns);
                const std::vector<float> product = products_of<kRows, kColumns>(*isa, weights, type, row, 1);
                alone.insert(alone.end(), product.begin(), product.end());
            }
            for (int64_t num_rows = 2; num_rows <= kMost; ++num_rows) {
                const std::vector<float> expected(alone.begin(), alone.begin() + num_rows * kRows);
                check(same_bits(products_of<kRows, kColumns>(*isa, weights, type, values, num_rows), expected),
                      std::string(isa->name) + ", " + name_of(type) + ": other bits in " + std::to_string(num_rows) +
                          " rows");
            }
        }
    }
}

// The largest subnormal number becomes the smallest normal bfloat16, or zero: in any number of rows the same.
void tiny_numbers_round_alike_in_any_batch() {
    constexpr int64_t kMost = 97, kColumns = 32, kRows = 16;
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (!isa->runs_here()) continue;
        for (const Type type : kTypes) {
            Values weights(type, kRows * kColumns);
            for (int64_t i = 0; i < kRows * kColumns; ++i) weights.set(i, 1024);
            std::vector<float> values(kMost * kColumns);
            for (int64_t i = 0; i < kMost; ++i) values[i * kColumns + 5] = std::bit_cast<float>(0x007fffffu);
            std::vector<float> beside = products_of<kRows, kColumns>(*isa, weights, type, values, kMost);
            beside.resize(kRows);
            check(same_bits(products_of<kRows, kColumns>(*isa, weights, type, values, 1), beside),
                  std::string(isa->name) + ", " + name_of(type) + ": other bits beside 96 rows");
        }
    }
}

// Memory for a Report, and what was written there: the bits.
struct Reported {
    explicit Reported(int64_t num_top) : ids(num_top, -7), numbers(num_top + 1, -7.0f) {
        report = {num_top, ids.data(), numbers.data(), &numbers.back()};
    }
    bool operator==(const Reported& other) const {
        return ids == other.ids &&
               std::memcmp(numbers.data(), other.numbers.data(), numbers.size() * sizeof(float)) == 0;
    }

    std::vector<int64_t> ids;
    std::vector<float> numbers;  // log-probabilities, then the entropy
    Report report;
};

// By the arithmetic of the specification every set draws the same token, with the same bits of its log-probability.
void every_set_draws_the_same_token() {
    const cpu::Entries& portable = cpu::built_isas().back()->float32;
    Random random(5);
    for (int64_t round = 0; round < 400; ++round) {
        const int64_t vocab = 1 + random.below(round % 4 == 0 ? 3000 : 90);
        std::vector<float> logits;
        for (int64_t i = 0; i < vocab; ++i)
            logits.push_back(static_cast<float>(std::floor(random.between(-40, 40)) / 4));
        std::vector<TokenEdit> edits = {{random.below(vocab), 1.5f, 1.25f, 0.5f, -0.25f}, {vocab + 7, 100}};
        edits[0].bans = vocab > 1 && round % 3 == 0;
        edits.resize(round % 3);
        const int64_t top_k = round % 5 == 0 ? vocab : 1 + random.below(vocab);
        const int64_t nucleus = round % 7 < 3 ? int64_t{1} << 30 : random.below(int64_t{1} << 30);
        const bool greedy = round % 11 == 0;
        SampleRow row = {.edits = edits.data(),
                         .num_edits = static_cast<int64_t>(edits.size()),
                         .greedy = greedy,
                         .temperature = greedy ? 1.0f : static_cast<float>(random.between(0.2, 3)),
                         .top_k = greedy ? vocab : top_k,
                         .nucleus = greedy ? int64_t{1} << 30 : nucleus,
                         .typical = !greedy && round % 7 == 4,
                         .min_p = !greedy && round % 6 == 0 ? 0.05f : 0.0f,
                         .random = random.bits()};
        const auto draw = [&](const cpu::Entries& entries, Reported& raw, Reported& processed) {
            row.raw = &raw.report;
            row.processed = &processed.report;
            return entries.sample(logits.data(), vocab, row, true, Memory(entries.sample_scratch(vocab)).data());
        };
        const int64_t num_top = 1 + random.below(30);
        Reported raw(num_top), processed(num_top);
        const Sample expected = draw(portable, raw, processed);
        for (const cpu::Isa* isa : cpu::built_isas()) {
            if (!isa->runs_here()) continue;
            Reported own_raw(num_top), own_processed(num_top);
            const Sample got = draw(isa->float32, own_raw, own_processed);
            check(own_raw == raw && own_processed == processed,
                  std::string(isa->name) + ": the reports of round " + std::to_string(round) + " have other bits");
            check(std::memcmp(&got.logprob, &expected.logprob, 2 * sizeof(float)) == 0 && got.token == expected.token,
                  std::string(isa->name) + ": the token " + std::to_string(got.token) + " with " +
                      std::to_string(got.processed_logprob) + ", the portable set " + std::to_string(expected.token) +
                      " with " + std::to_string(expected.processed_logprob));
            const float logprob = isa->float32.log_probability(logits.data(), vocab, got.token);
            check(std::memcmp(&logprob, &expected.logprob, sizeof(float)) == 0,
                  std::string(isa->name) + ": log_probability and sample have other bits");
        }
    }
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    for (const demiurgic::cpu::Isa* isa : demiurgic::cpu::built_isas()) {
        std::printf("%s: %s\n", isa->name, isa->runs_here() ? "tested" : "not tested, this machine does not have it");
    }
    return run_tests(
        {
            {"every number is read exactly", every_number_is_read_exactly},
            {"numbers are rounded to the nearest", numbers_are_rounded_to_the_nearest},
            {"any number of rows has the bits of each", any_number_of_rows_has_the_bits_of_each},
            {"tiny numbers round alike in any batch", tiny_numbers_round_alike_in_any_batch},
            {"every entry is near the oracle", every_entry_is_near_the_oracle},
            {"sets agree with the portable one", sets_agree_with_the_portable_one},
            {"every set draws the same token", every_set_draws_the_same_token},
            {"the same bits in any batch and by any team", the_same_bits_in_any_batch_and_by_any_team},
        },
        argc > 1 ? argv[1] : nullptr);
}
