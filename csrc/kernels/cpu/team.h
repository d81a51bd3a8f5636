#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>

// The threads that walk one step together. Every member runs the same code; a phase is work cut into units that do not
// depend on each other, and ends in a barrier. Which member computes a unit changes no bit of it.
namespace demiurgic::cpu {

class Team {
public:
    // What barrier() throws in the others once a member has failed.
    struct Stopped : std::exception {};

    explicit Team(int size) : size_(size) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_.load(std::memory_order_relaxed); }

    // A runtime may give fewer threads than asked for; before the first barrier, by every member, with the same value.
    void resize(int size) { size_.store(size, std::memory_order_relaxed); }

    // The next unit of this phase that nobody has taken: 0, 1, 2, ... Ends where the caller says: each member takes until
    // it gets a number beyond the last unit.
    int64_t take();

    // Waits for all members and begins the next phase. Spins for some microseconds, then yields the core.
    void barrier();

    // Runs `work` as one member: an exception stops the whole team and is kept for rethrow().
    void run_member(const std::function<void()>& work) noexcept;

    // What the first failing member threw, if any did.
    void rethrow() const;

private:
    void stop(std::exception_ptr error) noexcept;

    std::atomic<int> size_;
    alignas(64) std::atomic<int64_t> next_unit_{0};
    alignas(64) std::atomic<int> num_waiting_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stopped_{false};
    std::atomic<bool> failing_{false};
    std::exception_ptr error_;  // written once, by the member that set failing_, before stopped_
};

}  // namespace demiurgic::cpu
