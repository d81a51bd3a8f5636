#pragma once

#include <memory>

#include "kernels/decode_loop.h"
#include "kernels/kernels.h"

namespace demiurgic {

// The decode step of a model as captured graphs, one for each bucket of rows and blocks. Null where the kernels cannot take
// its tensors. The loop keeps `model`, whose references must outlive it.
std::unique_ptr<DecodeLoop> make_graph_loop(const LoopModel& model);

}  // namespace demiurgic
