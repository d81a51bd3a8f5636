#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "kernels/types.h"

namespace demiurgic {

// What was reported of the distributions that the tokens of a row come from, token after token. n: generated tokens, k:
// top_logprobs.
struct Reports {
    void append(const Report& report) {
        ids.insert(ids.end(), report.ids, report.ids + report.num_top);
        logprobs.insert(logprobs.end(), report.logprobs, report.logprobs + report.num_top);
        if (report.entropy) entropies.push_back(*report.entropy);
    }

    // Forgets all but the first n.
    void keep(int64_t n, int64_t k) {
        ids.resize(std::min(ids.size(), static_cast<size_t>(n * k)));
        logprobs.resize(ids.size());
        entropies.resize(std::min(entropies.size(), static_cast<size_t>(n)));
    }

    std::vector<int64_t> ids;      // [n, k]
    std::vector<float> logprobs;   // [n, k]
    std::vector<float> entropies;  // [n], or empty where they are not wanted
};

// Memory for the reports of one step.
class ReportMemory {
public:
    // What was handed out before is gone.
    void reset() { slots_.clear(); }

    // A report for the kernel to fill, until the next reset.
    const Report* add(int64_t num_top, bool want_entropy) {
        Slot& slot = slots_.emplace_back();
        slot.ids.resize(static_cast<size_t>(num_top));
        slot.logprobs.resize(static_cast<size_t>(num_top));
        slot.report = {num_top, slot.ids.data(), slot.logprobs.data(), want_entropy ? &slot.entropy : nullptr};
        return &slot.report;
    }

private:
    struct Slot {
        std::vector<int64_t> ids;
        std::vector<float> logprobs;
        float entropy = 0;
        Report report = {};
    };
    std::deque<Slot> slots_;  // they do not move
};

}  // namespace demiurgic
