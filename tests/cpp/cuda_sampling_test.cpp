// The CUDA sampler on the emulator: every token and log-probability with == against the CPU's, by edits that the host has
// planned and, step after step, by the state on the device.

#include <bit>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <set>

#include "check.h"
#include "kernels/arithmetic.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sampling.h"
#include "numbers.h"
#include "philox.h"
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

// Of one kind after another: spread, in steps with many ties, all the same, near each other, partly forbidden, wholly; with
// what is not a number; huge.
std::vector<float> random_logits(Random& random, int64_t vocab) {
    const int64_t kind = random.below(20);
    const double width = pick(random, {0.5, 4.0, 12.0, 60.0});
    std::vector<float> logits;
    for (int64_t i = 0; i < vocab; ++i) {
        const double x = random.between(-width, width) + random.between(-width, width) / 2;
        logits.push_back(static_cast<float>(kind < 8 ? x : kind < 13 ? std::round(x) / 2 : kind < 14 ? 1.25 : x));
        if (kind >= 14 && kind < 17 && random.below(3) > 0) logits.back() = -kInfinity;
        if (kind == 17) logits.back() = -kInfinity;
        if (kind == 18) logits.back() *= 3e36f;
    }
    if (kind == 15) logits[random.below(vocab)] = 2.0f;
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
    row.temperature = pick(random, {1.0f, 0.8f, 0.05f, 1.7f, 1e-3f, 30.0f});
    if (random.below(2)) row.top_k = 1 + random.below(pick(random, {vocab, vocab, std::min<int64_t>(vocab, 60)}));
    if (random.below(2)) {
        row.nucleus = pick(random, {static_cast<int64_t>(random.between(0, 1) * static_cast<double>(kNucleusOff)),
                                    kNucleusOff * 19 / 20, kNucleusOff - 1, int64_t{1}});
    }
    row.typical = random.below(3) == 0;
    if (random.below(3) == 0) row.min_p = pick(random, {1e-35f, 0.001f, 0.05f, 0.4f, 1.0f});
    return row;
}

// Rows of one launch, each in memory of exactly its size.
void check_planned(Random& random, int64_t vocab, int64_t num_rows) {
    const int64_t stride = vocab + random.below(3);
    std::vector<float> logits(static_cast<size_t>(stride * (num_rows - 1) + vocab), std::nanf(""));
    std::vector<std::vector<TokenEdit>> edits;
    std::vector<SampleRow> rows;
    for (int64_t r = 0; r < num_rows; ++r) {
        const std::vector<float> own = random_logits(random, vocab);
        std::copy(own.begin(), own.end(), logits.begin() + r * stride);
        edits.push_back(random_edits(random, vocab));
        rows.push_back(random_row(random, vocab, edits.back()));
    }
    for (size_t r = 0; r < rows.size(); ++r) rows[r].edits = edits[r].data();
    const int64_t shared = random.below(2) ? kShared : 0;
    std::vector<float> scratch(static_cast<size_t>(cuda::sampler_scratch(num_rows, vocab, shared)));
    const bool want_logprobs = random.below(3) > 0;
    std::vector<cuda::Chosen> chosen(rows.size());
    check(cuda::launch_sample(logits.data(), stride, num_rows, vocab, rows.data(), want_logprobs, chosen.data(),
                              {shared, scratch.data()}, nullptr) == cudaSuccess,
          "the launch");
    for (size_t r = 0; r < rows.size(); ++r) {
        const Sample expected =
            cpu_sample(logits.data() + static_cast<int64_t>(r) * stride, vocab, rows[r], want_logprobs);
        check_same(chosen[r], expected, want_logprobs, "vocabulary " + std::to_string(vocab) + ", " + text_of(rows[r]));
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
        for (const auto& [vocab, launches, rows] : {Size{5, 40, 5}, {31, 40, 5}, {1000, 30, 4}, {4099, 30, 3}}) {
            for (int64_t i = 0; i < launches; ++i) check_planned(random, vocab, rows);
        }
    });
    Random random(3);
    for (int i = 0; i < 12; ++i) check_planned(random, 50000, 1);
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

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"planned by the host", planned_by_the_host},
            {"log-probabilities", log_probabilities},
        },
        argc > 1 ? argv[1] : nullptr);
}
