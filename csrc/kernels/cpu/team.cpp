#include "kernels/cpu/team.h"

#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace demiurgic::cpu {

namespace {

// Long enough for members that finish a phase a few microseconds apart, short enough that on an oversubscribed machine the
// member that is waited for gets the core.
constexpr int kSpins = 200;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

int64_t Team::take(int member, int64_t num_units) {
    std::vector<Taken>& taken = taken_[phase_.load(std::memory_order_relaxed) % 2];
    int64_t unit = take_of(taken[member], member);
    for (int i = 1; unit >= num_units && i < size(); ++i) {
        const int other = (member + i) % size();
        const int64_t left = taken[other].count.load(std::memory_order_relaxed) * size() + other;
        if (left < num_units) unit = take_of(taken[other], other);
    }
    return unit;
}

void Team::barrier(int member) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    taken_[(phase + 1) % 2][member].count.store(0, std::memory_order_relaxed);
    if (num_waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
        num_waiting_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
    } else {
        int spins = 0;
        while (phase_.load(std::memory_order_acquire) == phase) {
            if (stopped_.load(std::memory_order_acquire)) throw Stopped{};
            if (spins < kSpins) {
                ++spins;
                pause();
            } else {
                std::this_thread::yield();
            }
        }
    }
}

void Team::run_member(const std::function<void()>& work) noexcept {
    try {
        work();
    } catch (const Stopped&) {
        return;  // what stopped the team is kept by the member that failed
    } catch (...) {
        stop(std::current_exception());
    }
}

void Team::stop(std::exception_ptr error) noexcept {
    if (failing_.exchange(true)) return;
    error_ = std::move(error);
    stopped_.store(true, std::memory_order_release);
}

void Team::rethrow() const {
    if (stopped_.load(std::memory_order_acquire)) std::rethrow_exception(error_);
}

}  // namespace demiurgic::cpu
