#pragma once

#include <algorithm>
#include <cmath>

#include "generation_config.h"
#include "kernels/arithmetic.h"
#include "kernels/types.h"

namespace demiurgic {

// A row's options as kernels take them, but for the edits and the random bits. `vocab`: ids of the vocabulary.
inline SampleRow sample_options(const GenerationConfig& config, int64_t vocab) {
    constexpr int64_t nucleus_unit = int64_t{1} << arithmetic::kNucleusBits;
    SampleRow row = {nullptr, 0, config.greedy(), 1.0f, vocab, nucleus_unit, false, 0.0f, 0};
    if (row.greedy) return row;
    row.temperature = static_cast<float>(config.temperature);
    row.typical = config.typical_p < 1.0;
    const double p = row.typical ? config.typical_p : config.top_p;
    row.nucleus = std::llround(p * static_cast<double>(nucleus_unit));
    if (config.top_k > 0) row.top_k = std::min(config.top_k, vocab);
    row.min_p = static_cast<float>(config.min_p);
    return row;
}

}  // namespace demiurgic
