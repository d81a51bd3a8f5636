#pragma once

// The sampler's entries: one row from logits to a token, by thresholds instead of sorts. The order of sampling and its
// arithmetic are those of reference_sample.cpp, bit for bit. Included inside the namespace of an instruction set. V:
// tokens of the row.

#include "kernels/cpu/logit_rows.h"
#include "kernels/cpu/select.h"

// The work on one row. "Divided" is by the temperature.
struct RowSampler {
    static int64_t scratch(int64_t vocab) {
        Arrays arrays(nullptr, vocab);
        return arrays.bytes;
    }

    RowSampler(const float* row_logits, int64_t num_tokens, const SampleRow& row, bool logprobs, char* memory)
        : raw(row_logits), vocab(num_tokens), a(row), want_logprobs(logprobs), m(memory, num_tokens) {}

    Sample run() {
        const bool has_edits = a.num_edits > 0;
        if (!find_maxima(raw, vocab, m.maxima, has_edits ? m.edited : nullptr)) return none(kNotFinite);
        const float raw_largest = largest_of(m.maxima, num_groups());
        const bool want_raw = want_logprobs || a.raw;
        const int64_t raw_total = want_raw ? mass_of_row(raw, vocab, 1.0f, raw_largest) : 0;
        if (a.raw) report_row(*a.raw, raw, 1.0f, raw_largest, raw_total);
        logits = has_edits ? m.edited : raw;
        if (has_edits) apply_edits();
        const float undivided = largest_of(m.maxima, num_groups());
        if (undivided == -kInfinity) return none(kNothingAllowed);
        largest = undivided / a.temperature;
        if (!(__builtin_fabsf(largest) < kInfinity)) return none(kOverflow);

        const Choice choice = a.greedy ? most_likely() : drawn();
        Sample result = {choice.token, 0, 0, a.raw, a.processed};
        if (a.processed) report_processed(*a.processed, choice);
        if (want_logprobs) {
            result.logprob = log_probability_of(raw[choice.token] - raw_largest, raw_total);
            result.processed_logprob = log_probability_of(choice.shifted, choice.total);
        }
        return result;
    }

private:
    struct Arrays {
        Arrays(char* memory, int64_t vocab) : next(memory) {
            const int64_t stripes = num_stripes(vocab), padded = stripes * kStripe + kLanes;
            edited = take<float>(padded);
            maxima = take<float>(stripes * kLanes);
            stripe_masses = take<int64_t>(stripes);
            ids = take<int32_t>(padded);
            values = take<float>(padded);
            exponentials = take<float>(padded);
            masses = take<int64_t>(padded);
            keys = take<uint32_t>(padded);
            spare_keys = take<uint32_t>(padded);
            spare_masses = take<int64_t>(padded);
        }

        template <class P>
        P* take(int64_t count) {
            const int64_t size = (count * static_cast<int64_t>(sizeof(P)) + 63) / 64 * 64;
            P* piece = reinterpret_cast<P*>(next);
            if (next) next += size;
            bytes += size;
            return piece;
        }

        char* next;
        int64_t bytes = 0;
        float* edited;           // [V] logits after steps 1 to 5, where there are edits
        float* maxima;           // [groups]
        int64_t* stripe_masses;  // [stripes]
        // Candidates, in order of id: the tokens that the filters so far have left.
        int32_t* ids;
        float* values;        // divided logits
        float* exponentials;  // e^(value - largest)
        int64_t* masses;
        // For find_cut.
        uint32_t* keys;
        uint32_t* spare_keys;
        int64_t* spare_masses;
    };

    struct Choice {
        int64_t token;
        float shifted;  // its divided logit less the largest that is left
        int64_t total;  // of the masses that are left
    };

    static Sample none(int64_t code) { return {code, __builtin_nanf(""), __builtin_nanf("")}; }

    int64_t num_groups() const { return num_stripes(vocab) * kLanes; }

    // Steps 1 to 5, on the copy of the logits; the maxima follow.
    void apply_edits() {
        for (int64_t i = 0; i < a.num_edits; ++i) {
            const TokenEdit& edit = a.edits[i];
            if (edit.token >= vocab) continue;
            const float before = m.edited[edit.token];
            float x = before + edit.bias;
            x = x < 0 ? x * edit.repetition : x / edit.repetition;
            x = x - edit.frequency;
            x = x - edit.presence;
            x = edit.bans ? -kInfinity : x;
            m.edited[edit.token] = x;
            float& group = m.maxima[edit.token / kStripe * kLanes + edit.token % kLanes];
            if (x > group) {
                group = x;
            } else if (before == group) {
                group = largest_of_group(edit.token);
            }
        }
    }

    float largest_of_group(int64_t token) const {
        float found = -kInfinity;
        const int64_t first = token / kStripe * kStripe + token % kLanes;
        for (int64_t i = first; i < smaller(first + kStripe, vocab); i += kLanes) {
            found = m.edited[i] > found ? m.edited[i] : found;
        }
        return found;
    }

    // The lowest id among the largest logits.
    Choice most_likely() {
        int64_t token = 0;
        while (!any_lane(load_lanes(m.maxima + token / kStripe * kLanes) == largest)) token += kStripe;
        while (logits[token] != largest) ++token;
        all_are_left = true;
        return {token, 0.0f, want_logprobs || a.processed ? mass_of_row(logits, vocab, 1.0f, largest) : 0};
    }

    // Steps 7 to 11.
    Choice drawn() {
        const bool has_top_k = a.top_k < vocab, has_nucleus = a.nucleus < int64_t{1} << arithmetic::kNucleusBits;
        divide_maxima();
        if (has_top_k) {
            collect_top_k();
        } else if (has_nucleus && !a.typical) {
            collect_nucleus();
        } else if (has_nucleus) {
            collect(-kInfinity);
        } else if (a.min_p > 1e-30f) {
            // Those below e^(ln(min_p) - 0.01) of the largest are out, however exp and log round.
            collect(largest + (log_positive(a.min_p) - 0.01f));
        } else {
            all_are_left = true;
            return drawn_of_all();
        }
        weigh();
        if (has_nucleus) {
            if (has_top_k || a.typical) target = target_of(total);
            keep_nucleus();
        }
        if (a.min_p > 0) {
            keep([&](int64_t i) { return !(m.exponentials[i] < a.min_p); });
        }
        return drawn_of_candidates();
    }

    void divide_maxima() {
        for (int64_t i = 0; i < num_groups(); i += kLanes) {
            store_lanes(m.maxima + i, load_lanes(m.maxima + i) / a.temperature);
        }
    }

    // All tokens with a divided logit of `least` or more become candidates, but none at -inf.
    void collect(float least) { collect(least, logits, a.temperature); }

    // The same of other logits; the maxima are those of what they give.
    void collect(float least, const float* of, float temperature) {
        least = least > kLowest ? least : kLowest;
        num = 0;
        for (int64_t stripe = 0; stripe < num_stripes(vocab); ++stripe) {
            if (!any_lane(load_lanes(m.maxima + stripe * kLanes) >= least)) continue;
            for_stripe(of, vocab, stripe, [&](int64_t i, FloatLanes x) {
                const FloatLanes divided = x / temperature;
                for (int lane = 0; lane < kLanes; ++lane) {
                    m.ids[num] = static_cast<int32_t>(i + lane);
                    m.values[num] = divided[lane];
                    num += divided[lane] >= least;
                }
            });
        }
    }

    // Keeps the candidates for which f(index) holds.
    template <class F>
    void keep(F f) {
        int64_t kept = 0;
        total = 0;
        for (int64_t i = 0; i < num; ++i) {
            const bool stays = f(i);
            m.ids[kept] = m.ids[i];
            m.values[kept] = m.values[i];
            m.exponentials[kept] = m.exponentials[i];
            const int64_t mass = m.masses[kept] = m.masses[i];
            total += stays ? mass : 0;
            kept += stays;
        }
        num = kept;
    }

    // Exponentials and masses of the candidates.
    void weigh() {
        total = 0;
        for (int64_t i = 0; i < num; i += kLanes) {
            store_lanes(m.exponentials + i, exp_not_positive(load_lanes(m.values + i) - largest));
        }
        for (int64_t i = 0; i < num; ++i) {
            m.masses[i] = mass_of(m.exponentials[i]);
            total += m.masses[i];
        }
    }

    // The k-th largest of x [n], 1 <= k <= n.
    float kth_largest(const float* x, int64_t n, int64_t k) {
        for (int64_t i = 0; i < n; ++i) m.keys[i] = key_of(x[i]);
        for (int64_t i = 0; i < n; ++i) m.masses[i] = 1;
        return float_of_key(find_cut(m.keys, m.masses, n, k, m.spare_keys, m.spare_masses).key);
    }

    // No token of the k largest is smaller: k groups have one as large as the k-th of their maxima.
    float bound_of_largest(int64_t k) {
        return k <= num_groups() ? kth_largest(m.maxima, num_groups(), k) : -kInfinity;
    }

    void collect_top_k() {
        collect(bound_of_largest(a.top_k));
        if (num <= a.top_k) return;
        const float kth = kth_largest(m.values, num, a.top_k);
        keep([&](int64_t i) { return m.values[i] >= kth; });
    }

    int64_t target_of(int64_t mass) const {
        const int64_t scaled = scaled_by(mass, static_cast<uint64_t>(a.nucleus), arithmetic::kNucleusBits);
        return scaled > 1 ? scaled : 1;
    }

    // The candidates of top_p alone: the largest tokens until their mass reaches the target, and more.
    void collect_nucleus() {
        target = target_of(mass_of_row(logits, vocab, a.temperature, largest));
        for (float depth = 4.0f;; depth *= 2) {  // e^-32 has no mass, so it ends there
            collect(largest - depth);
            weigh();
            if (total >= target) return;
        }
    }

    // Step 9: the first candidates in order until their mass reaches the target, ties in order of id.
    void keep_nucleus() {
        if (a.typical) {
            make_keys_of_distances();
        } else {
            for (int64_t i = 0; i < num; ++i) m.keys[i] = key_of(m.values[i]);
        }
        const Cut cut = find_cut(m.keys, m.masses, num, target, m.spare_keys, m.spare_masses);
        int64_t before = cut.before;
        keep([&](int64_t i) {
            if (m.keys[i] != cut.key) return m.keys[i] > cut.key;
            const bool stays = before < target;
            before += m.masses[i];
            return stays;
        });
        if (!a.typical) return;
        largest = -kInfinity;  // it need not be typical
        for (int64_t i = 0; i < num; ++i) largest = m.values[i] > largest ? m.values[i] : largest;
        weigh();
    }

    // Descending keys of ascending |surprise - entropy|.
    void make_keys_of_distances() {
        const float scale = static_cast<float>(total) * (1.0f / arithmetic::kMassUnit), log_scale = log_positive(scale);
        const auto surprise = [&](int64_t i) { return -((m.values[i] - largest) - log_scale); };
        const float entropy = entropy_of_candidates();
        for (int64_t i = 0; i < num; ++i) m.keys[i] = ~key_of(__builtin_fabsf(surprise(i) - entropy));
    }

    // After weigh, by `total` and `largest`.
    float entropy_of_candidates() const {
        const float scale = static_cast<float>(total) * (1.0f / arithmetic::kMassUnit), log_scale = log_positive(scale);
        int64_t sum = 0;
        for (int64_t i = 0; i < num; ++i) {
            if (m.masses[i] <= 0) continue;
            sum += mass_of(entropy_term(m.exponentials[i], m.values[i] - largest, scale, log_scale));
        }
        return static_cast<float>(sum) * (1.0f / arithmetic::kMassUnit);
    }

    // Of a whole row `of` that is divided by `temperature`; its largest, the sum of its masses, and its maxima.
    void report_row(const Report& report, const float* of, float temperature, float most, int64_t sum) {
        if (most == -kInfinity) return;  // no token can be chosen
        if (report.entropy) *report.entropy = entropy_of_row(of, vocab, temperature, most, sum);
        if (report.num_top == 0) return;
        collect(bound_of_largest(report.num_top), of, temperature);
        if (all_are_left && a.min_p > 0) {  // so small that it takes no mass
            weigh();
            keep([&](int64_t i) { return !(m.exponentials[i] < a.min_p); });
        }
        write_top(report, most, sum);
    }

    void report_processed(const Report& report, const Choice& choice) {
        if (all_are_left) {
            report_row(report, logits, a.temperature, largest, choice.total);
            return;
        }
        if (report.entropy) *report.entropy = entropy_of_candidates();
        if (report.num_top > 0) write_top(report, largest, choice.total);
    }

    // The first candidates in descending order, ties in order of id.
    void write_top(const Report& report, float most, int64_t sum) {
        const float least = num > report.num_top ? kth_largest(m.values, num, report.num_top) : -kInfinity;
        int64_t listed = 0;
        for (int64_t i = 0; i < num; ++i) {
            const float value = m.values[i];
            const bool is_full = listed == report.num_top;
            if (value < least || (is_full && value <= report.logprobs[listed - 1])) continue;
            int64_t place = is_full ? listed - 1 : listed++;
            for (; place > 0 && report.logprobs[place - 1] < value; --place) {
                report.logprobs[place] = report.logprobs[place - 1];
                report.ids[place] = report.ids[place - 1];
            }
            report.logprobs[place] = value;
            report.ids[place] = m.ids[i];
        }
        for (int64_t i = 0; i < listed; ++i) report.logprobs[i] = log_probability_of(report.logprobs[i] - most, sum);
        for (int64_t i = listed; i < report.num_top; ++i) {
            report.logprobs[i] = __builtin_nanf("");
            report.ids[i] = -1;
        }
    }

    // Step 11: the first token in order of id at which the sum of masses is above the random part of the total.
    Choice drawn_of_candidates() const {
        int64_t i = 0;
        for (int64_t left = scaled_by(total, a.random, 64); left >= m.masses[i]; ++i) left -= m.masses[i];
        return {m.ids[i], m.values[i] - largest, total};
    }

    Choice drawn_of_all() {
        total = 0;
        for (int64_t i = 0; i < num_stripes(vocab); ++i) {
            m.stripe_masses[i] = mass_of_stripe(logits, vocab, i, a.temperature, largest);
            total += m.stripe_masses[i];
        }
        int64_t left = scaled_by(total, a.random, 64), stripe = 0;
        for (; left >= m.stripe_masses[stripe]; ++stripe) left -= m.stripe_masses[stripe];
        num = 0;  // the stripe's tokens are the candidates
        for_stripe(logits, vocab, stripe, [&](int64_t, FloatLanes x) {
            store_lanes(m.values + num, x / a.temperature);
            num += kLanes;
        });
        const int64_t sum = total;
        weigh();
        int64_t i = 0;
        for (; left >= m.masses[i]; ++i) left -= m.masses[i];
        return {stripe * kStripe + i, m.values[i] - largest, sum};
    }

    const float* raw;  // [V]
    int64_t vocab;
    const SampleRow& a;
    bool want_logprobs;
    Arrays m;
    const float* logits = nullptr;  // [V] after steps 1 to 5
    float largest = 0;              // of the divided logits that are left
    int64_t num = 0;                // candidates
    int64_t total = 0;              // of their masses
    int64_t target = 0;             // mass that the nucleus must reach
    bool all_are_left = false;      // no filter has made candidates
};

inline Sample sample_row(const float* logits, int64_t vocab, const SampleRow& row, bool want_logprobs, char* scratch) {
    return RowSampler(logits, vocab, row, want_logprobs, scratch).run();
}

inline int64_t sample_scratch(int64_t vocab) { return RowSampler::scratch(vocab); }

// Of one token of logits [V]; NaN where a logit is NaN or +inf, or all are -inf.
inline float row_log_probability(const float* logits, int64_t vocab, int64_t token) {
    IntLanes finite = IntLanes{} - 1;
    FloatLanes lanes = spread(-kInfinity);
    for (int64_t stripe = 0; stripe < num_stripes(vocab); ++stripe) {
        for_stripe(logits, vocab, stripe, [&](int64_t, FloatLanes x) {
            finite &= x < kInfinity;
            lanes = larger_lanes(lanes, x);
        });
    }
    float largest = lanes[0];
    for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    if (any_lane(~finite) || largest == -kInfinity) return __builtin_nanf("");
    return log_probability_of(logits[token] - largest, mass_of_row(logits, vocab, 1.0f, largest));
}
