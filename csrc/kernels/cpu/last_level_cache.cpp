#include "kernels/cpu/last_level_cache.h"

#include <fstream>
#include <string>

namespace demiurgic::cpu {

namespace {

// Linux numbers the caches of a processor from 0 on. (sysconf is not asked: it gives the sum over a socket on some of them.)
int64_t read_bytes() {
    int64_t last_level = 0, bytes = 0;
    for (int index = 0;; ++index) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        std::ifstream level_file(folder + "level"), size_file(folder + "size");
        int64_t level = 0, kibibytes = 0;
        char unit = 0;
        if (!(level_file >> level) || !(size_file >> kibibytes >> unit) || unit != 'K') return bytes;
        if (level >= last_level) last_level = level, bytes = kibibytes * 1024;
    }
}

}  // namespace

int64_t last_level_cache_bytes() {
    static const int64_t bytes = read_bytes();
    return bytes;
}

}  // namespace demiurgic::cpu
