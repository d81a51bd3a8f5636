#pragma once

#include <chrono>
#include <utility>

namespace demiurgic {

// Seconds since it was made, or asked the last time.
class Stopwatch {
public:
    double seconds() {
        const auto before = std::exchange(last_, std::chrono::steady_clock::now());
        return std::chrono::duration<double>(last_ - before).count();
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace demiurgic
