#pragma once

#include <functional>

#include "batch.h"
#include "kv_cache.h"
#include "weights.h"

namespace demiurgic {

// Asked between layers: throws to interrupt the step.
using Poll = std::function<void()>;

// The logits [R, V] float32 of the batch's `logit_rows`; keys and values of all its tokens go to the cache.
at::Tensor decode(const Weights& weights, const Batch& batch, KVCache& cache, const Kernels& kernels, const Poll& poll);

}  // namespace demiurgic
