# The module itself is written by CMakeLists.txt.
TORCH_VERSION: str
TORCH_CUDA: str | None
TORCH_FOUND: str
CXX11_ABI: int
COMPILER: str
BUILD_TYPE: str
CUDA_ARCHITECTURES: str | None
CUDA_NOTE: str | None
COMMIT: str | None
