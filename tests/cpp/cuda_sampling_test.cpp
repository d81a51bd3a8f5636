// The CUDA sampler on the emulator: every token and log-probability with == against the CPU's, by edits that the host has
// planned and, step after step, by the state on the device.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <set>

#include "check.h"
#include "kernels/arithmetic.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sampling.h"
#include "numbers.h"
#include "philox.h"
#include "reports.h"
#include "step_sampling.h"
#include "token_edits.h"

namespace demiurgic::test {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kNucleusOff = int64_t{1} << arithmetic::kNucleusBits;
constexpr int64_t kShared = 160 << 10;  // what an sm_80 block may ask for, or a little less

const cpu::Entries& portable() {
    for (const cpu::Isa* isa : cpu::built_isas()) {
        if (std::string(isa->name) == "portable") return isa->float32;
    }
    throw std::runtime_error("no portable entries");
}

Sample cpu_sample(const float* logits, int64_t vocab, const SampleRow& row, bool want_logprobs) {
    static std::vector<char> memory;
    memory.resize(static_cast<size_t>(portable().sample_scratch(vocab)) + 64);
    char* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    return portable().sample(logits, vocab, row, want_logprobs, aligned);
}

template <class T>
T pick(Random& random, std::initializer_list<T> values) {
    return std::data(values)[random.below(static_cast<int64_t>(values.size()))];
}

bool same(float a, float b) { return a == b || (a != a && b != b); }

std::string text_of(const SampleRow& row) {
    return "greedy " + std::to_string(row.greedy) + ", temperature " + std::to_string(row.temperature) + ", top_k " +
           std::to_string(row.top_k) + ", nucleus " + std::to_string(row.nucleus) + ", typical " +
           std::to_string(row.typical) + ", min_p " + std::to_string(row.min_p) + ", random " +
           std::to_string(row.random) + ", edits " + std::to_string(row.num_edits);
}

void check_same(const cuda::Chosen& chosen, const Sample& expected, bool want_logprobs, const std::string& what) {
    check(chosen.token == expected.token,
          what + ": token " + std::to_string(chosen.token) + ", not " + std::to_string(expected.token));
    if (!want_logprobs) return;
    check(same(chosen.logprob, expected.logprob),
          what + ": logprob " + std::to_string(chosen.logprob) + ", not " + std::to_string(expected.logprob));
    check(same(chosen.processed_logprob, expected.processed_logprob),
          what + ": processed_logprob " + std::to_string(chosen.processed_logprob) + ", not " +
              std::to_string(expected.processed_logprob));
}

// Numbers far apart and close together, with ties, subnormal, huge, one far above, forbidden ones, and no numbers.
float random_logit(Random& random, int64_t kind, double width) {
    const double x = random.between(-width, width) + random.between(-width, width) / 2;
    if (kind < 8) return static_cast<float>(x);
    if (kind < 12) return static_cast<float>(std::round(x) / 2);
    if (kind < 13) return pick(random, {0.0f, -0.0f, 1e-45f, -1e-45f});
    if (kind < 14) return 1.25f;
    if (kind < 17) return random.below(3) > 0 ? -kInfinity : static_cast<float>(x);
    if (kind < 18) return static_cast<float>(x * 3e36);
    return kind < 19 ? -kInfinity : static_cast<float>(x);
}

std::vector<float> random_logits(Random& random, int64_t vocab) {
    const int64_t kind = random.below(20);
    const double width = pick(random, {1e-6, 0.5, 4.0, 4.0, 12.0, 60.0});
    std::vector<float> logits;
    for (int64_t i = 0; i < vocab; ++i) logits.push_back(random_logit(random, kind, width));
    if (kind == 7 || kind == 11) logits[random.below(vocab)] += pick(random, {27.0f, 28.0f, 81.0f, 1000.0f});
    if (kind == 19) logits[random.below(vocab)] = random.below(2) ? kInfinity : std::nanf("");
    return logits;
}

std::vector<TokenEdit> random_edits(Random& random, int64_t vocab) {
    std::vector<TokenEdit> edits;
    std::set<int64_t> used;
    const int64_t num = pick(random, {int64_t{0}, int64_t{0}, int64_t{1}, int64_t{7}, vocab});
    const bool bans_all = num == vocab && random.below(4) == 0;
    for (int64_t i = 0; i < num; ++i) {
        const int64_t token = bans_all ? i : random.below(vocab + 2);
        if (!used.insert(token).second) continue;
        TokenEdit edit = {token};
        if (random.below(3) == 0) edit.bias = static_cast<float>(random.between(-3, 3));
        if (random.below(50) == 0) edit.bias = 3e38f;
        if (random.below(2)) edit.repetition = static_cast<float>(random.between(0.5, 2));
        if (random.below(2)) edit.frequency = static_cast<float>(random.between(-1, 1));
        if (random.below(2)) edit.presence = static_cast<float>(random.between(-1, 1));
        edit.bans = bans_all || random.below(6) == 0 ? 2 : 0;
        edits.push_back(edit);
    }
    return edits;
}

SampleRow random_row(Random& random, int64_t vocab, const std::vector<TokenEdit>& edits) {
    SampleRow row = {edits.data(), static_cast<int64_t>(edits.size()), false, 1.0f, vocab, kNucleusOff, false, 0.0f, 0};
    row.random = pick(random, {random.bits(), random.bits(), random.bits(), uint64_t{0}, ~uint64_t{0}});
    row.greedy = random.below(6) == 0;
    if (row.greedy) return row;
    row.temperature = pick(random, {1.0f, 0.8f, 0.8f, 0.05f, 1.7f, 1e-3f, 30.0f, 1e4f});
    if (random.below(2)) row.top_k = 1 + random.below(pick(random, {vocab, vocab, std::min<int64_t>(vocab, 60)}));
    if (random.below(2)) {
        row.nucleus = pick(random, {static_cast<int64_t>(random.between(0, 1) * static_cast<double>(kNucleusOff)),
                                    kNucleusOff * 19 / 20, kNucleusOff - 1, int64_t{1}});
    }
    row.typical = random.below(3) == 0;
    if (random.below(3) == 0) row.min_p = pick(random, {1e-35f, 1e-12f, 0.001f, 0.05f, 0.4f, 1.0f});
    return row;
}

void check_same(const Report* one, const Report* other, const std::string& what) {
    if (!one) return;
    for (int64_t i = 0; i < one->num_top; ++i) {
        const std::string place = what + ": place " + std::to_string(i) + " of " + std::to_string(one->num_top);
        check(one->ids[i] == other->ids[i],
              place + " has the token " + std::to_string(one->ids[i]) + ", not " + std::to_string(other->ids[i]));
        check(same(one->logprobs[i], other->logprobs[i]), place + " has another log-probability");
    }
    if (!one->entropy) return;
    check(same(*one->entropy, *other->entropy),
          what + ": entropy " + std::to_string(*one->entropy) + ", not " + std::to_string(*other->entropy));
}

// The same row twice, but for its reports, which have the same wishes.
void add_reports(Random& random, SampleRow& row, SampleRow& again, ReportMemory& memory) {
    for (const auto report : {&SampleRow::raw, &SampleRow::processed}) {
        if (random.below(3) > 0) continue;
        const int64_t num_top = pick(random, {0, 1, 2, 5, 20, 70, 300, 1000});
        const bool entropy = num_top == 0 || random.below(2);
        row.*report = memory.add(num_top, entropy);
        again.*report = memory.add(num_top, entropy);
    }
}

// Rows of one launch, each in memory of exactly its size.
void check_planned(Random& random, int64_t vocab, int64_t num_rows) {
    const int64_t stride = vocab + random.below(3);
    std::vector<float> logits(static_cast<size_t>(stride * (num_rows - 1) + vocab), std::nanf(""));
    std::vector<std::vector<TokenEdit>> edits;
    std::vector<SampleRow> rows, again;
    ReportMemory reports;
    for (int64_t r = 0; r < num_rows; ++r) {
        const std::vector<float> own = random_logits(random, vocab);
        std::copy(own.begin(), own.end(), logits.begin() + r * stride);
        edits.push_back(random_edits(random, vocab));
        rows.push_back(random_row(random, vocab, edits.back()));
        again.push_back(rows.back());
        add_reports(random, rows.back(), again.back(), reports);
    }
    for (size_t r = 0; r < rows.size(); ++r) rows[r].edits = again[r].edits = edits[r].data();
    const int64_t shared = random.below(2) ? kShared : 0;
    std::vector<float> scratch(static_cast<size_t>(cuda::sampler_scratch(num_rows, vocab, shared)));
    const bool want_logprobs = random.below(3) > 0;
    std::vector<cuda::Chosen> chosen(rows.size());
    check(cuda::launch_sample(logits.data(), stride, num_rows, vocab, rows.data(), want_logprobs, chosen.data(),
                              {shared, scratch.data()}, nullptr) == cudaSuccess,
          "the launch");
    for (size_t r = 0; r < rows.size(); ++r) {
        const std::string what = "vocabulary " + std::to_string(vocab) + ", " + text_of(rows[r]);
        const Sample expected =
            cpu_sample(logits.data() + static_cast<int64_t>(r) * stride, vocab, again[r], want_logprobs);
        check_same(chosen[r], expected, want_logprobs, what);
        if (expected.token < 0) continue;
        check_same(rows[r].raw, again[r].raw, what + ", report of the logits");
        check_same(rows[r].processed, again[r].processed, what + ", report of what is left");
    }
}

template <class Run>
void in_both_orders(Run run) {
    for (const simt::Order order : {simt::Order::forward, simt::Order::backward}) {
        simt::order = order;
        run(order == simt::Order::forward ? 1 : 2);
    }
    simt::order = simt::Order::forward;
}

void planned_by_the_host() {
    struct Size {
        int64_t vocab, launches, rows;
    };
    in_both_orders([](uint64_t seed) {
        Random random(seed);
        for (const auto& [vocab, launches, rows] :
             {Size{1, 5, 5}, {5, 40, 5}, {31, 40, 5}, {65, 20, 5}, {1000, 30, 4}, {4099, 30, 3}}) {
            for (int64_t i = 0; i < launches; ++i) check_planned(random, vocab, rows);
        }
    });
    Random random(3);
    for (int i = 0; i < 12; ++i) check_planned(random, 50000, 1);  // 32 warps; with and without enough shared memory
}

void log_probabilities() {
    in_both_orders([](uint64_t seed) {
        Random random(seed);
        for (const int64_t vocab : {5, 31, 1000, 4099}) {
            const int64_t num_rows = 40, stride = vocab + 1;
            std::vector<float> logits(static_cast<size_t>(stride * num_rows)), logprob(num_rows);
            std::vector<int64_t> token;
            for (int64_t r = 0; r < num_rows; ++r) {
                const std::vector<float> own = random_logits(random, vocab);
                std::copy(own.begin(), own.end(), logits.begin() + r * stride);
                token.push_back(random.below(vocab));
            }
            check(cuda::launch_log_probability(logits.data(), stride, num_rows, vocab, token.data(), logprob.data(),
                                               nullptr) == cudaSuccess,
                  "the launch");
            for (int64_t r = 0; r < num_rows; ++r) {
                const float expected = portable().log_probability(logits.data() + r * stride, vocab, token[r]);
                check(same(logprob[r], expected), "vocabulary " + std::to_string(vocab) + ", row " + std::to_string(r) +
                                                      ": " + std::to_string(logprob[r]) + ", not " +
                                                      std::to_string(expected));
            }
        }
    });
}

GenerationConfig random_config(Random& random, int64_t vocab) {
    GenerationConfig config;
    config.eos_token_id = Ids{random.below(vocab), vocab + 3};
    if (random.below(2)) config.stop_token_ids = {random.below(vocab)};
    if (random.below(2)) config.min_new_tokens = random.below(4);
    if (random.below(3) == 0) config.min_length = random.below(12);
    config.do_sample = random.below(5) > 0;
    config.temperature = pick(random, {0.8, 1.0, 0.1, 1.9});
    config.top_k = pick(random, {int64_t{0}, int64_t{50}, int64_t{3}, vocab});
    config.top_p = pick(random, {1.0, 0.95, 0.5});
    if (random.below(4) == 0) config.typical_p = 0.7;
    if (random.below(4) == 0) config.min_p = 0.05;
    if (random.below(2)) config.repetition_penalty = random.between(0.8, 1.5);
    if (random.below(2)) config.frequency_penalty = random.between(-1, 1);
    if (random.below(2)) config.presence_penalty = random.between(-1, 1);
    config.penalize_prompt = random.below(2) > 0;
    for (int64_t i = random.below(3); i > 0; --i) config.logit_bias[random.below(vocab)] = random.between(-3, 3);
    for (int64_t i = random.below(3); i > 0; --i) config.bad_token_ids.push_back(random.below(vocab));
    return config;
}

// A sequence twice: as the device has it, and as the CPU's sampler continues it.
struct Row {
    Row(Random& random, int64_t vocab)
        : config(random_config(random, vocab)),
          seed(random.bits()),
          prompt(make_prompt(random, vocab)),
          tokens(prompt),
          edits(config, prompt) {
        list = step_edits(config, static_cast<int64_t>(prompt.size()), vocab);
        if (!needs_counts(config)) return;
        counts = std::vector<uint32_t>(static_cast<size_t>(vocab), 77);
        count(prompt, counts);
    }

    static std::vector<int64_t> make_prompt(Random& random, int64_t vocab) {
        std::vector<int64_t> prompt;
        for (int64_t i = 1 + random.below(9); i > 0; --i) prompt.push_back(random.below(vocab));
        return prompt;
    }

    void count(const std::vector<int64_t>& of, std::vector<uint32_t>& into) const {
        check(cuda::launch_count_context(of.data(), static_cast<int64_t>(of.size()),
                                         first_counted(config, static_cast<int64_t>(prompt.size())), into.data(),
                                         static_cast<int64_t>(into.size()), nullptr) == cudaSuccess,
              "the launch that counts");
    }

    int64_t size() const { return static_cast<int64_t>(tokens.size()); }

    Sample next(const float* logits, int64_t vocab) const {
        SampleRow row = sample_options(config, vocab);
        row.edits = edits.all().data();
        row.num_edits = static_cast<int64_t>(edits.all().size());
        row.random = token_bits(seed, static_cast<uint64_t>(size()));
        return cpu_sample(logits, vocab, row, true);
    }

    // Whether an end of the options'.
    bool is_end(int64_t token) const {
        const auto has = [&](const Ids& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
        return has(*config.eos_token_id) || has(config.stop_token_ids);
    }

    const GenerationConfig config;
    const uint64_t seed;
    const std::vector<int64_t> prompt;
    std::vector<int64_t> tokens;
    TokenEdits edits;
    std::vector<StepEdit> list;
    std::vector<uint32_t> counts;
    bool rests = false;
};

// The state of B rows, as a captured step has it.
struct Steps {
    static constexpr int64_t kBlock = 4, kMostBlocks = 8, kResults = 3;

    Steps(Random& random, const std::vector<std::unique_ptr<Row>>& of, int64_t vocab) {
        for (size_t r = 0; r < of.size(); ++r) {
            const Row& row = *of[r];
            const bool rests = row.rests;
            tokens.push_back(row.tokens.back());
            positions.push_back(row.size() - 1);
            rows.push_back({static_cast<int64_t>(r), rests ? 0 : 1, rests ? 0 : row.size()});
            for (int64_t i = 0; i < kMostBlocks; ++i) table.push_back(random.below(1000));
            slots.push_back(rests ? -1 : slot(r, row.size() - 1));
            limits.push_back(row.size() + 2 + random.below(12));
            sampling.push_back(step_sampling(row.config, row.seed, vocab, true));
            sampling.back().edits = row.list.data();
            sampling.back().num_edits = static_cast<int32_t>(row.list.size());
            sampling.back().counts = row.counts.empty() ? nullptr : const_cast<uint32_t*>(row.counts.data());
        }
        results.resize(kResults * of.size(), {-9, 0, 0, 0, 0, -9});
    }

    int64_t slot(size_t r, int64_t position) const {
        return table[r * kMostBlocks + position / kBlock] * kBlock + position % kBlock;
    }

    StepState state() {
        return {tokens.data(), positions.data(), rows.data(),   slots.data(),   table.data(), kMostBlocks,
                kBlock,        sampling.data(),  limits.data(), results.data(), kResults};
    }

    std::vector<int64_t> tokens, positions, slots, table, limits;
    std::vector<BatchRow> rows;
    std::vector<StepSampling> sampling;
    std::vector<StepResult> results;
};

// What a step made of one row that was not at rest.
void check_step(Steps& steps, Row& row, size_t r, size_t num_rows, const Sample& expected, const std::string& what) {
    const int64_t position = row.size();
    const StepResult& result = steps.results[position % Steps::kResults * num_rows + r];
    check_same({result.token, result.logprob, result.processed_logprob}, expected, true, what);
    check(result.position == position, what + ": the result's position");
    row.rests = expected.token < 0 || row.is_end(expected.token) || position + 1 >= steps.limits[r];
    check(result.rests == static_cast<int32_t>(row.rests), what + ": whether the row rests");
    if (expected.token >= 0) {
        row.tokens.push_back(expected.token);
        row.edits.append(row.tokens);
        check(steps.tokens[r] == expected.token && steps.positions[r] == position, what + ": the next input");
    }
    check(steps.rows[r].first == static_cast<int64_t>(r), what + ": first");
    check(steps.rows[r].num_tokens == (row.rests ? 0 : 1), what + ": num_tokens");
    check(steps.rows[r].context_length == (row.rests ? 0 : position + 1), what + ": context_length");
    check(steps.slots[r] == (row.rests ? -1 : steps.slot(r, position)), what + ": slot");
    if (row.counts.empty()) return;
    std::vector<uint32_t> anew(row.counts.size());
    row.count(row.tokens, anew);
    check(anew == row.counts, what + ": counts");
}

bool same_bytes(const auto& a, const auto& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
}

// Returns how many steps of single rows were taken.
int64_t check_steps(Random& random, int64_t vocab, size_t num_rows) {
    std::vector<std::unique_ptr<Row>> rows;
    for (size_t r = 0; r < num_rows; ++r) rows.push_back(std::make_unique<Row>(random, vocab));
    rows[num_rows / 2]->rests = num_rows > 1;  // a place that nobody has
    Steps steps(random, rows, vocab);
    int64_t taken = 0;
    for (int step = 0; step < 10; ++step) {
        std::vector<float> logits;
        for (size_t r = 0; r < num_rows; ++r) {
            const std::vector<float> own = random_logits(random, vocab);
            logits.insert(logits.end(), own.begin(), own.end());
        }
        const Steps before = steps;
        const int64_t shared = step % 2 ? kShared : 0, num = static_cast<int64_t>(num_rows);
        std::vector<float> scratch(static_cast<size_t>(cuda::sampler_scratch(num, vocab, shared)));
        check(cuda::launch_sample_step(logits.data(), vocab, num, vocab, steps.state(), {shared, scratch.data()},
                                       step % 3 == 0, nullptr) == cudaSuccess,
              "the launch");
        for (size_t r = 0; r < num_rows; ++r) {
            Row& row = *rows[r];
            const std::string what =
                "vocabulary " + std::to_string(vocab) + ", step " + std::to_string(step) + ", row " + std::to_string(r);
            if (row.rests) {
                for (int64_t i = 0; i < Steps::kResults; ++i) {
                    check(steps.results[i * num + r].position == before.results[i * num + r].position,
                          what + ": a result of a row at rest");
                }
                check(steps.tokens[r] == before.tokens[r] && steps.positions[r] == before.positions[r] &&
                          steps.rows[r].context_length == 0 && steps.slots[r] == -1,
                      what + ": it rests");
                continue;
            }
            ++taken;
            check_step(steps, row, r, num_rows, row.next(logits.data() + r * vocab, vocab), what);
        }
        check(same_bytes(steps.table, before.table) && same_bytes(steps.limits, before.limits), "what the host writes");
    }
    return taken;
}

void step_by_step() {
    int64_t taken = 0;
    in_both_orders([&](uint64_t seed) {
        Random random(seed);
        for (const int64_t vocab : {5, 31, 1000, 4099}) {
            for (int i = 0; i < 12; ++i) taken += check_steps(random, vocab, 1 + i % 4);
        }
    });
    check(taken > 500, "only " + std::to_string(taken) + " steps before all rows rested");
}

void which_options_the_device_can_follow() {
    const auto suffices = [](auto change) {
        GenerationConfig config;
        change(config);
        return device_state_suffices(config);
    };
    check(suffices([](GenerationConfig&) {}), "the defaults");
    check(suffices(
              [](GenerationConfig& c) { c.repetition_penalty = 1.1, c.min_new_tokens = 3, c.logit_bias = {{1, 2.0}}; }),
          "penalties, bans and biases");
    check(!suffices([](GenerationConfig& c) { c.repetition_penalty = 1.1, c.repetition_context_size = 8; }),
          "a window");
    check(!suffices([](GenerationConfig& c) { c.no_repeat_ngram_size = 3; }), "n-grams");
    check(!suffices([](GenerationConfig& c) { c.top_logprobs = 2; }), "top_logprobs");
    check(!suffices([](GenerationConfig& c) { c.entropy = true; }), "entropy");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"planned by the host", planned_by_the_host},
            {"log-probabilities", log_probabilities},
            {"step by step", step_by_step},
            {"which options the device can follow", which_options_the_device_can_follow},
        },
        argc > 1 ? argv[1] : nullptr);
}
