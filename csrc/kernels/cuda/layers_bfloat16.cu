#include "kernels/cuda/layers.cuh"

namespace demiurgic::cuda {

const Layers kBFloat16Layers = layers_of<__nv_bfloat16>();

}  // namespace demiurgic::cuda
