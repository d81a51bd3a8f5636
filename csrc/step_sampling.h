#pragma once

#include <cstdint>
#include <vector>

#include "generation_config.h"
#include "kernels/cuda/step_state.h"
#include "kernels/types.h"

// The options of a sequence as kernels take them.
namespace demiurgic {

// Without edits and random bits. V: vocabulary.
SampleRow sample_options(const GenerationConfig& config, int64_t vocab);

// Whether the device can find the edits of a sequence itself, step after step (StepSampling). Where it cannot, because they
// depend on more than counts of tokens, or where reports are wanted, the host plans each step with TokenEdits. Hooks of the
// user's are the caller's business.
bool device_state_suffices(const GenerationConfig& config);

// Whether StepSampling::counts are needed.
bool needs_counts(const GenerationConfig& config);

// The first token of a context that frequency_penalty and presence_penalty count.
int64_t first_counted(const GenerationConfig& config, int64_t prompt_length);

// Of one row, but for its `edits`, `num_edits` and `counts`: no pointer is known here.
StepSampling step_sampling(const GenerationConfig& config, uint64_t seed, int64_t vocab, bool want_logprobs);

// Of one row, in order of token; none outside the vocabulary. eos_token_id is resolved.
std::vector<StepEdit> step_edits(const GenerationConfig& config, int64_t prompt_length, int64_t vocab);

}  // namespace demiurgic
