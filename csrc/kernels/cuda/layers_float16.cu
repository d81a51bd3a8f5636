#include "kernels/cuda/layers.cuh"

namespace demiurgic::cuda {

const Layers kFloat16Layers = layers_of<__half>();

}  // namespace demiurgic::cuda
