#include "kernels/cuda/layers.cuh"

namespace demiurgic::cuda {

const Layers kFloat32Layers = layers_of<float>();

}  // namespace demiurgic::cuda
