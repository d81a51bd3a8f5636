#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/sampler_arithmetic.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/types.h"

// One row from logits to a token, by one block, without a sort: the order of sampling and the bits are those of
// kernels/cpu/sampling.h. V: tokens of the row.
namespace demiurgic::cuda {

// Steps 1 to 5 of the order of sampling, on one logit.
struct Edit {
    float bias, repetition, frequency, presence;
    bool bans;

    __device__ float of(float logit) const {
        Rounded x = Rounded{logit} + bias;
        x = x.v < 0 ? x * repetition : x / Rounded{repetition};
        x = x - Rounded{frequency} - Rounded{presence};
        return bans ? -INFINITY : x.v;
    }
};

// The other options of a row, as in SampleRow. "Divided" is by the temperature.
struct Choosing {
    bool greedy, typical, want_logprobs;
    float temperature, min_p;
    int64_t top_k, nucleus;
    uint64_t random;
    const Report* raw = nullptr;  // as in SampleRow, on the device
    const Report* processed = nullptr;
};

class RowSampler {
public:
    // So many candidates at most are copied to a list of their own, in order of id.
    static constexpr int kListed = kMostReported;

    struct Memory {
        Block::Memory block;
        float values[kListed];
        int32_t ids[kListed];
    };

    // edited: [V] memory of the block, shared or not, to work in.
    __device__ RowSampler(Memory& memory, const float* logits, float* edited, int vocabulary, const Choosing& options)
        : m(memory), block(memory.block), raw(logits), row(edited), vocab(vocabulary), a(options) {}

    // `edits` is what the options do before temperature: edits.of_any(i, x) to the logit x of the token i, whatever else
    // is said of it; then for the j-th of edits.num_listed() tokens edits.token(j), edits.of_listed(j, x).
    template <class Edits>
    __device__ Chosen run(const Edits& edits) {
        if (a.raw) report_raw();
        const float raw_largest = edit(edits);
        if (raw_largest == INFINITY) return none(kNotFinite);
        const float undivided = largest_of(row, vocab);
        if (undivided == -INFINITY) return none(kNothingAllowed);
        largest = a.greedy ? undivided : (Rounded{undivided} / Rounded{a.temperature}).v;
        if (!(fabsf(largest) < INFINITY)) return none(kOverflow);
        values = row;
        num = vocab;
        const Place place = a.greedy ? most_likely() : drawn();
        Chosen chosen = {id_of(place.index), NAN, NAN};
        if (a.want_logprobs) {
            const int64_t total = block.sum(mass_of_row(block, raw, vocab, raw_largest));
            chosen.logprob = log_probability_of(raw[chosen.token] - raw_largest, total);
            chosen.processed_logprob = log_probability_of(values[place.index] - largest, place.total);
        }
        if (a.processed) report(*a.processed, place.total);
        return chosen;
    }

    // This thread's part of the sum of masses of logits [vocab].
    static __device__ int64_t mass_of_row(const Block& block, const float* logits, int vocab, float largest) {
        int64_t sum = 0;
        block.for_each(vocab, [&](int i) { sum += mass_of(exp_not_positive(logits[i] - largest)); });
        return sum;
    }

    // The largest of logits [vocab], infinite where one is NaN or +inf. use(i, logit) is called for each.
    template <class Use>
    static __device__ float find_largest(Block& block, const float* logits, int vocab, Use use) {
        float most = -INFINITY;
        block.for_each(vocab, [&](int i) {
            const float x = logits[i];
            most = x < INFINITY ? (x > most ? x : most) : INFINITY;
            use(i, x);
        });
        return block.largest(most);
    }

private:
    static __device__ Chosen none(int64_t code) { return {code, NAN, NAN}; }

    __device__ int64_t id_of(int i) const { return values == row ? i : m.ids[i]; }

    // Fills `row`; returns the largest raw logit.
    template <class Edits>
    __device__ float edit(const Edits& edits) {
        const float most = find_largest(block, raw, vocab, [&](int i, float x) { row[i] = edits.of_any(i, x); });
        for (int j = static_cast<int>(threadIdx.x); j < edits.num_listed(); j += static_cast<int>(blockDim.x)) {
            const int64_t token = edits.token(j);
            if (token < vocab) row[token] = edits.of_listed(j, raw[token]);
        }
        __syncthreads();
        return most;
    }

    __device__ float largest_of(const float* x, int n) {
        float most = -INFINITY;
        block.for_each(n, [&](int i) { most = x[i] > most ? x[i] : most; });
        return block.largest(most);
    }

    // The lowest id among the largest logits.
    __device__ Place most_likely() {
        int first = INT32_MAX;
        block.for_each(vocab, [&](int i) {
            if (row[i] == largest) first = min(first, i);
        });
        first = block.smallest(first);
        const bool want_total = a.want_logprobs || a.processed;
        return {first, want_total ? block.sum(mass_of_row(block, row, vocab, largest)) : 0};
    }

    // Steps 7 to 11. The candidates are `num` values; a token that is out has -inf.
    __device__ Place drawn() {
        const bool has_nucleus = a.nucleus < int64_t{1} << arithmetic::kNucleusBits;
        const float largest_of_thread = divide();
        if (a.top_k < vocab) {
            const int left = collect_largest(a.top_k, largest_of_thread);
            if (left > a.top_k) keep_top_k();
            if (has_nucleus) keep_nucleus(target_of(total_mass()));
        } else if (has_nucleus && a.typical) {
            keep_nucleus(target_of(total_mass()));
        } else if (has_nucleus) {
            keep_nucleus(collect_nucleus());
        } else if (a.min_p > 1e-30f) {
            // Those below e^(ln(min_p) - 0.01) of the largest are out, however exp and log round.
            collect((Rounded{largest} + (Rounded{log_positive(a.min_p)} + -0.01f)).v);
        }
        if (a.min_p > 0) {
            keep([&](int i) { return !(exponential(i) < a.min_p); });
        }
        return block.find_place(
            num, [&](int i) { return mass(i); }, [&](int64_t total) { return scaled_by(total, a.random, 64); });
    }

    // Of all values, in their place. Returns the largest of this thread.
    __device__ float divide() {
        float most = -INFINITY;
        block.for_each(vocab, [&](int i) {
            const float x = a.temperature == 1.0f ? row[i] : (Rounded{row[i]} / Rounded{a.temperature}).v;
            row[i] = x;
            most = x > most ? x : most;
        });
        __syncthreads();
        return most;
    }

    __device__ float exponential(int i) const { return exp_not_positive(values[i] - largest); }
    __device__ int64_t mass(int i) const { return mass_of(exponential(i)); }

    __device__ int64_t total_mass() {
        int64_t sum = 0;
        block.for_each(num, [&](int i) { sum += mass(i); });
        return block.sum(sum);
    }

    __device__ int64_t target_of(int64_t total) const {
        return max(int64_t{1}, scaled_by(total, static_cast<uint64_t>(a.nucleus), arithmetic::kNucleusBits));
    }

    // Only candidates for which stays(i) remain. Each thread asks for its own.
    template <class Stays>
    __device__ void keep(Stays stays) {
        block.for_each(num, [&](int i) {
            if (!stays(i)) values[i] = -INFINITY;
        });
        __syncthreads();
    }

    // All of `least` or more, of the whole row, but none at -inf: to the list where they find room. Returns how many.
    __device__ int collect(float least) {
        const auto stays = [&](int i) { return row[i] >= least && row[i] > -INFINITY; };
        const int left = block.collect(vocab, stays, kListed, [&](int i, int place) {
            m.ids[place] = i;
            m.values[place] = row[i];
        });
        if (left > kListed) {
            keep(stays);
        } else {
            values = m.values;
            num = left;
        }
        return left;
    }

    // The value that has a rank: 0 is the largest.
    __device__ uint32_t rank_of(float value) const { return key_of(largest) - key_of(value); }
    __device__ float value_of(uint32_t rank) const { return float_of_key(key_of(largest) - rank); }

    // The k largest of the row, and more: none of them is smaller than the k-th of the threads' largest.
    __device__ int collect_largest(int64_t k, float largest_of_thread) {
        const int num_threads = static_cast<int>(blockDim.x);
        if (k > num_threads) return collect(-INFINITY);
        const auto rank = [&](int) { return rank_of(largest_of_thread); };  // for_each gives a thread its own number
        return collect(value_of(block.find_cut(num_threads, rank, [](int) { return int64_t{1}; }, k).rank));
    }

    __device__ bool is_left(int i) const { return values[i] > -INFINITY; }

    // The k largest candidates, and ties with the k-th.
    __device__ void keep_top_k() {
        const auto weight = [&](int i) { return static_cast<int64_t>(is_left(i)); };
        const Cut cut = block.find_cut(num, [&](int i) { return rank_of(values[i]); }, weight, a.top_k);
        const float kth = value_of(cut.rank);
        keep([&](int i) { return values[i] >= kth; });
    }

    // The candidates of top_p alone: the largest tokens until their mass reaches the target, which is returned, and more.
    __device__ int64_t collect_nucleus() {
        int64_t all = 0, near[3] = {0, 0, 0};  // those within e^-4, e^-8, e^-16 of the largest
        block.for_each(num, [&](int i) {
            const int64_t own = mass(i);
            all += own;
            for (int j = 0; j < 3; ++j) near[j] += row[i] >= largest - depth_of(j) ? own : 0;
        });
        const int64_t target = target_of(block.sum(all));
        int j = 0;
        while (j < 3 && block.sum(near[j]) < target) ++j;
        collect(largest - depth_of(j));
        return target;
    }
    static __device__ float depth_of(int j) { return static_cast<float>(4 << j); }  // e^-32 has no mass

    // Step 9: the first candidates in order until their mass reaches the target, ties in order of id.
    __device__ void keep_nucleus(int64_t target) {
        const auto weight = [&](int i) { return mass(i); };
        if (a.typical) {
            const int64_t total = total_mass();
            const float log_scale = log_positive(scale_of(total)), entropy = entropy_of_candidates(total);
            const auto rank = [&, log_scale, entropy](int i) {
                const float surprise = -((values[i] - largest) - log_scale);
                return key_of(fabsf(surprise - entropy));
            };
            keep_first(target, rank, weight);
            largest = largest_of(values, num);  // it need not be typical
        } else {
            keep_first(target, [&](int i) { return rank_of(values[i]); }, weight);
        }
    }

    // The first candidates in order of rank and id until their weight reaches the target.
    template <class Rank, class Weight>
    __device__ void keep_first(int64_t target, Rank rank, Weight weight) {
        const Cut cut = block.find_cut(num, rank, weight, target);
        const Place last = block.find_place(
            num, [&](int i) { return rank(i) == cut.rank ? weight(i) : 0; },
            [&](int64_t) { return target - cut.before - 1; });
        keep([&](int i) {
            const uint32_t r = rank(i);
            return r < cut.rank || (r == cut.rank && i <= last.index);
        });
    }

    // Where their masses sum to `total`. A sum of integers, as the masses are.
    __device__ float entropy_of_candidates(int64_t total) {
        const float scale = scale_of(total), log_scale = log_positive(scale);
        int64_t sum = 0;
        block.for_each(num, [&](int i) {
            const Rounded e = {exponential(i)};
            if (mass_of(e.v) <= 0) return;
            sum += mass_of((e / Rounded{scale} * Rounded{-((values[i] - largest) - log_scale)}).v);
        });
        return scale_of(block.sum(sum));
    }

    // Works in `row`, before it is needed.
    __device__ void report_raw() {
        largest = find_largest(block, raw, vocab, [&](int i, float x) { row[i] = x; });
        values = row;
        num = vocab;
        if (fabsf(largest) < INFINITY) report(*a.raw, total_mass());
    }

    // Of the candidates, whose masses sum to `total`; they are gone then.
    __device__ void report(const Report& to, int64_t total) {
        if (to.entropy) {
            const float entropy = entropy_of_candidates(total);
            if (threadIdx.x == 0) *to.entropy = entropy;
        }
        if (to.num_top > 0) list_top(to, keep_top(to.num_top), total);
    }

    // The n largest candidates, ties in order of id; to the list. Returns how many there are. n: not more than kListed
    __device__ int keep_top(int64_t n) {
        int left;
        if (values == row) {
            float most = -INFINITY;
            block.for_each(num, [&](int i) { most = row[i] > most ? row[i] : most; });
            left = collect_largest(n, most);
        } else {
            int64_t own = 0;
            block.for_each(num, [&](int i) { own += is_left(i); });
            left = static_cast<int>(block.sum(own));
        }
        if (left <= n) return left;
        const auto rank = [&](int i) { return rank_of(values[i]); };
        keep_first(n, rank, [&](int i) { return static_cast<int64_t>(is_left(i)); });
        if (values == row) collect(-INFINITY);
        return static_cast<int>(n);
    }

    __device__ void list_top(const Report& to, int listed, int64_t total) {
        block.for_each(num, [&](int i) {
            const float value = values[i];
            if (!is_left(i)) return;
            int place = 0;
            for (int j = 0; j < num; ++j) place += values[j] > value || (values[j] == value && j < i);
            to.ids[place] = id_of(i);
            to.logprobs[place] = log_probability_of(value - largest, total);
        });
        for (int64_t i = listed + static_cast<int>(threadIdx.x); i < to.num_top; i += blockDim.x) {
            to.ids[i] = -1;
            to.logprobs[i] = NAN;
        }
        __syncthreads();  // before anybody changes the candidates
    }

    Memory& m;
    Block block;
    const float* raw;  // [V]
    float* row;        // [V] after steps 1 to 5, divided in drawn()
    const int vocab;
    const Choosing& a;
    float* values = nullptr;  // [num] of the candidates: the whole row, or the list
    int num = 0;
    float largest = 0;  // of the divided logits that are left
};

}  // namespace demiurgic::cuda
