#pragma once

// The entries of the table in double precision, by their definition, with a bound on what float32 may differ.

#include "check.h"
#include "kernels/cpu/isa.h"
#include "numbers.h"

namespace demiurgic::test {

// A number of the oracle, and how far a result in float32 may lie from it.
struct Bounded {
    double value, error;
};

class Oracle {
public:
    // rounds_x: products take x as bfloat16, as the instructions for it do; rounds_queries: attention takes queries and
    // exponentials so.
    Oracle(Type type, bool rounds_x, bool rounds_queries, std::string what)
        : type_(type), rounds_x_(rounds_x), rounds_queries_(rounds_queries), what_(std::move(what)) {}

    // Each: the arguments after the entry ran, and what it changed as it was before.
    void check_embed(const cpu::Embed& a) const {
        for (int64_t i = 0; i < a.num_tokens; ++i) {
            for (int64_t k = 0; k < a.table.columns; ++k) {
                const double value = read(type_, a.table.weight, a.tokens[i] * a.table.stride + k);
                compare("embed", a.out[i * a.table.columns + k], {value, 0});
            }
        }
    }

    void check_attention_in(const cpu::AttentionIn& a) const {
        for (int64_t token = 0; token < a.num_tokens; ++token) {
            const Row x = normed(a.x + token * a.q.columns, a.norm, a.q.columns);
            const float *cos = a.cos + token * (a.d / 2), *sin = a.sin + token * (a.d / 2);
            for (int64_t head = 0; head < a.heads; ++head) {
                const Row q = rotated(product(x, a.q, head * a.d, a.d), cos, sin);
                for (int64_t k = 0; k < a.d; ++k) compare("q", a.q_out[(token * a.heads + head) * a.d + k], q[k]);
            }
            const int64_t block = a.slots[token] / 16, position = a.slots[token] % 16;
            for (int64_t head = 0; head < a.kv_heads; ++head) {
                const Row key = rotated(product(x, a.k, head * a.d, a.d), cos, sin);
                const Row value = product(x, a.v, head * a.d, a.d);
                const int64_t at = (block * a.kv_heads + head) * a.d * 16;
                for (int64_t k = 0; k < a.d; ++k) {
                    compare("key", read(type_, a.keys, at + k * 16 + position), stored(key[k]));
                    compare("value", read(type_, a.values, at + position * a.d + k), stored(value[k]));
                }
            }
        }
    }

    void check_attend(const cpu::Attend& a) const {
        for (int64_t row = 0; row < a.num_rows; ++row) {
            for (int64_t i = 0; i < a.rows[row].num_tokens; ++i) {
                for (int64_t head = 0; head < a.heads; ++head) check_query(a, row, i, head);
            }
        }
    }

    void check_attention_out(const cpu::AttentionOut& a, const std::vector<float>& before) const {
        for (int64_t i = 0; i < a.num_tokens; ++i) {
            Row x;
            for (int64_t k = 0; k < a.out.columns; ++k) x.push_back(operand({a.attended[i * a.out.columns + k], 0}));
            compare_sum("attention_out", a.x, before, i, product(x, a.out, 0, a.out.rows));
        }
    }

    void check_mlp(const cpu::Mlp& a, const std::vector<float>& before) const {
        for (int64_t i = 0; i < a.num_tokens; ++i) {
            const Row x = normed(before.data() + i * a.up.columns, a.norm, a.up.columns);
            Row inner = product(x, a.up, 0, a.up.rows);
            if (a.gate.weight) {
                const Row gate = product(x, a.gate, 0, a.gate.rows);
                for (size_t k = 0; k < inner.size(); ++k) inner[k] = times(inner[k], activated(a.activation, gate[k]));
            } else {
                for (Bounded& y : inner) y = activated(a.activation, y);
            }
            for (Bounded& y : inner) y = operand(y);
            compare_sum("mlp", a.x, before, i, product(inner, a.down, 0, a.down.rows));
        }
    }

    void check_head(const cpu::Head& a) const {
        for (int64_t i = 0; i < a.num_rows; ++i) {
            const Row logits =
                product(normed(a.x + i * a.head.columns, a.norm, a.head.columns), a.head, 0, a.head.rows);
            for (int64_t k = 0; k < a.head.rows; ++k) compare("head", a.logits[i * a.head.rows + k], logits[k]);
        }
    }

private:
    using Row = std::vector<Bounded>;

    static constexpr double kUnit = 0x1p-24;    // of float32: half of what neighbours of 1 lie apart
    static constexpr double kFew = 1e-6;        // relative, of some operations one after the other
    static constexpr double kRounded = 0x1p-8;  // relative, of a number as bfloat16

    void compare(const char* entry, double got, Bounded expected) const {
        if (std::fabs(got - expected.value) <= expected.error + 1e-30) return;
        check(false, what_ + ", " + entry + ": " + std::to_string(got) + " instead of " +
                         std::to_string(expected.value) + " within " + std::to_string(expected.error));
    }

    // x [rows, n] += y [n] in row i
    void compare_sum(const char* entry, const float* x, const std::vector<float>& before, int64_t i,
                     const Row& y) const {
        const int64_t n = static_cast<int64_t>(y.size());
        for (int64_t k = 0; k < n; ++k) {
            const double value = before[i * n + k] + y[k].value;
            compare(entry, x[i * n + k], {value, y[k].error + kFew * std::fabs(value)});
        }
    }

    // As products take x.
    Bounded operand(Bounded x) const {
        return rounds_x_ ? Bounded{x.value, x.error + kRounded * (std::fabs(x.value) + x.error)} : x;
    }

    // As the cache keeps x.
    Bounded stored(Bounded x) const {
        const double unit = type_ == Type::float32 ? 0 : type_ == Type::bfloat16 ? kRounded : 0x1p-11;
        const double smallest = type_ == Type::float16 ? 0x1p-25 : 0;
        return {x.value, x.error + unit * (std::fabs(x.value) + x.error) + smallest};
    }

    static Bounded times(Bounded a, Bounded b) {
        const double value = a.value * b.value;
        return {value, std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error +
                           kFew * std::fabs(value)};
    }

    static Bounded activated(Activation activation, Bounded x) {
        double y = x.value > 0 ? x.value : 0;
        if (activation == Activation::silu) y = x.value / (1 + std::exp(-x.value));
        if (activation == Activation::gelu) y = 0.5 * x.value * (1 + std::erf(x.value * std::sqrt(0.5)));
        return {y, 1.2 * x.error + kFew * std::fabs(x.value)};  // none is steeper than 1.13
    }

    Row normed(const float* x, const cpu::Norm& norm, int64_t n) const {
        double squares = 0;
        for (int64_t k = 0; k < n; ++k) squares += static_cast<double>(x[k]) * x[k];
        const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + norm.eps);
        Row out;
        for (int64_t k = 0; k < n; ++k) {
            const double value = x[k] * scale * read(norm.is_float ? Type::float32 : type_, norm.weight, k);
            out.push_back(operand({value, (kFew + kUnit * static_cast<double>(n) / 4) * std::fabs(value)}));
        }
        return out;
    }

    // Rows [first, first + num) of W by x, and their bias.
    Row product(const Row& x, const cpu::Matrix& w, int64_t first, int64_t num) const {
        const double longest = static_cast<double>(w.columns) / 2 + 16;  // additions, one after the other, of any lane
        Row out;
        for (int64_t row = first; row < first + num; ++row) {
            Bounded sum{0, 0};
            double size = 0;
            for (int64_t k = 0; k < w.columns; ++k) {
                const double weight = read(type_, w.weight, row * w.stride + k);
                sum.value += x[k].value * weight;
                sum.error += x[k].error * std::fabs(weight);
                size += std::fabs(x[k].value * weight);
            }
            if (w.bias) sum.value += read(type_, w.bias, row);
            out.push_back({sum.value, sum.error + longest * kUnit * size + kFew * std::fabs(sum.value)});
        }
        return out;
    }

    static Row rotated(Row x, const float* cos, const float* sin) {
        const size_t half = x.size() / 2;
        for (size_t i = 0; i < half; ++i) {
            const Bounded a = x[i], b = x[i + half];
            const double error = a.error + b.error + kFew * (std::fabs(a.value) + std::fabs(b.value));
            x[i] = {a.value * cos[i] - b.value * sin[i], error};
            x[i + half] = {b.value * cos[i] + a.value * sin[i], error};
        }
        return x;
    }

    void check_query(const cpu::Attend& a, int64_t row, int64_t i, int64_t head) const {
        const int64_t num_positions = a.rows[row].context_length - a.rows[row].num_tokens + i + 1;
        const int64_t kv_head = head / (a.heads / a.kv_heads), at = ((a.rows[row].first + i) * a.heads + head) * a.d;
        const auto block = [&](int64_t position) {
            return (a.block_table[row * a.most_blocks + position / 16] * a.kv_heads + kv_head) * a.d * 16;
        };
        const double rounding = rounds_queries_ ? kRounded : 0;
        std::vector<double> scores;
        double most = -INFINITY, error = 0;  // of a score
        for (int64_t position = 0; position < num_positions; ++position) {
            double score = 0, size = 0;
            for (int64_t k = 0; k < a.d; ++k) {
                const double term = a.q[at + k] * static_cast<double>(a.scale) *
                                    read(type_, a.keys, block(position) + k * 16 + position % 16);
                score += term;
                size += std::fabs(term);
            }
            scores.push_back(score);
            most = std::max(most, score);
            error = std::max(error, (kUnit * static_cast<double>(a.d + 2) + rounding) * size);
        }
        double total = 0;
        for (double& score : scores) total += score = std::exp(score - most);
        const double relative = 2 * error + 2 * kFew + kUnit * static_cast<double>(num_positions) + 2 * rounding;
        for (int64_t k = 0; k < a.d; ++k) {
            double sum = 0, size = 0;
            for (int64_t position = 0; position < num_positions; ++position) {
                const double term =
                    scores[position] / total * read(type_, a.values, block(position) + position % 16 * a.d + k);
                sum += term;
                size += std::fabs(term);
            }
            compare("attend", a.out[at + k], {sum, relative * size});
        }
    }

    Type type_;
    bool rounds_x_, rounds_queries_;
    std::string what_;
};

}  // namespace demiurgic::test
