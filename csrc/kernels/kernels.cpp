#include "kernels/kernels.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>

#include "kernels/cpu/cpu_kernels.h"

#ifdef DEMIURGIC_CUDA
#include "kernels/cuda/cuda_kernels.h"
#endif
#ifdef DEMIURGIC_CUBLASLT
#include "kernels/cuda/cublaslt_kernels.h"
#endif

namespace demiurgic {

namespace {

// The kernels that DEMIURGIC_KERNELS forces. Read at each call, so that a test can switch.
std::optional<std::string> forced_kernels() {
    const char* choice = std::getenv("DEMIURGIC_KERNELS");
    if (!choice || !*choice) return std::nullopt;
    const std::vector<std::string> isas = cpu::running_isas();
    std::string name = choice;
    if (name == "reference" || std::find(isas.begin(), isas.end(), name) != isas.end()) return name;
    std::string allowed = "'reference'";
    for (const std::string& isa : isas) allowed += ", '" + isa + "'";
    throw std::invalid_argument("DEMIURGIC_KERNELS is '" + name + "', but must be one of " + allowed +
                                " on this machine, or not be set.");
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

// What torch's allocator has taken from the driver, does not use and could give back. An allocator of the user's, put in
// place of torch's, may not tell.
int64_t unused_bytes(c10::DeviceAllocator& allocator, at::Device device) try {
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto stats = allocator.getDeviceStats(device.index());
    const int64_t bound = stats.active_bytes[all].current + stats.inactive_split_bytes[all].current;
    return std::max<int64_t>(0, stats.reserved_bytes[all].current - bound);
} catch (const c10::Error&) {
    return 0;
}

}  // namespace

const Kernels& reference_alone() {
    static const Kernels table = [] {
        Kernels kernels = reference_kernels();
        kernels.cache_layout = CacheLayout::by_head;
        return kernels;
    }();
    return table;
}

const Kernels& kernels_for(at::Device device, at::ScalarType dtype, [[maybe_unused]] bool exact) {
    const std::optional<std::string> forced = forced_kernels();
    if (forced == "reference") return reference_alone();
#ifdef DEMIURGIC_CUDA
    if (device.is_cuda() && cuda_kernels_run_on(device)) {
        const Kernels* native = cuda_kernels(dtype, reference_kernels());
#ifdef DEMIURGIC_CUBLASLT
        if (native && !exact) return kernels_with_cublaslt(dtype, *native);
#endif
        if (native) return *native;
    }
#endif
    if (device.is_cpu()) {
        const Kernels* native = cpu::cpu_kernels(*cpu::choose_isa(forced), dtype, reference_kernels());
        if (native) return *native;
    }
    return reference_alone();
}

std::vector<std::string> isa_names() { return cpu::running_isas(); }

int64_t free_bytes(at::Device device) {
    if (device.is_cpu() || device.is_mps()) return free_host_bytes();
    c10::DeviceAllocator& allocator = *c10::getDeviceAllocator(device.type());
    return static_cast<int64_t>(allocator.getMemoryInfo(device.index()).first) + unused_bytes(allocator, device);
}

std::map<std::string, std::string> Kernels::implementations() const {
    return {
        {"embed", embed.implementation},
        {"attention_in", attention_in.implementation},
        {"attend", attend.implementation},
        {"attention_out", attention_out.implementation},
        {"mlp", mlp.implementation},
        {"select_rows", select_rows.implementation},
        {"head", head.implementation},
        {"sample", sample.implementation},
        {"log_probability", log_probability.implementation},
        {"checksum", checksum.implementation},
    };
}

}  // namespace demiurgic
