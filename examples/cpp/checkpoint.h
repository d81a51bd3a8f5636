#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weights.h"

// A model as the Python lines of README.md write it.
struct Checkpoint {
    demiurgic::Weights weights;
    std::vector<int64_t> eos_token_ids;
};

// Throws std::runtime_error, with a sentence for the user, where the file is missing, damaged or holds something else;
// what the core throws where the weights are not those of the config.
Checkpoint read_checkpoint(const std::string& path);
