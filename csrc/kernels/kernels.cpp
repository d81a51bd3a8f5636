#include "kernels/kernels.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <stdexcept>

#ifdef DEMIURGIC_CUDA
#include "kernels/cuda/cuda_kernels.h"
#endif

namespace demiurgic {

namespace {

// The only choice there is to force: the plain path. Read at each call, so that a test can switch.
bool reference_is_forced() {
    const char* choice = std::getenv("DEMIURGIC_KERNELS");
    if (!choice || !*choice) return false;
    if (std::string(choice) == "reference") return true;
    throw std::invalid_argument("DEMIURGIC_KERNELS is '" + std::string(choice) +
                                "', but must be 'reference' or not be set.");
}

// Memory that the system can hand out without swapping.
int64_t free_host_bytes() {
    std::ifstream meminfo("/proc/meminfo");
    std::string key;
    int64_t kib;
    while (meminfo >> key >> kib) {
        if (key == "MemAvailable:") return kib * 1024;
        meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
#ifdef _SC_AVPHYS_PAGES
    return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
#else
    return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 2;  // macOS does not tell; half is a safe guess
#endif
}

}  // namespace

const Kernels& kernels_for(at::Device device) {
    if (reference_is_forced()) return reference_kernels();
#ifdef DEMIURGIC_CUDA
    if (device.is_cuda()) {
        static const Kernels table = cuda_kernels(reference_kernels());
        return table;
    }
#endif
    (void)device;
    return reference_kernels();
}

int64_t free_bytes(at::Device device) {
#ifdef DEMIURGIC_CUDA
    if (device.is_cuda()) return free_cuda_bytes(device);
#endif
    (void)device;
    return free_host_bytes();
}

std::map<std::string, std::string> Kernels::implementations() const {
    return {
        {"embed", embed.implementation},   {"attention_in", attention_in.implementation},
        {"attend", attend.implementation}, {"attention_out", attention_out.implementation},
        {"mlp", mlp.implementation},       {"head", head.implementation},
        {"sample", sample.implementation}, {"log_probability", log_probability.implementation},
    };
}

}  // namespace demiurgic
