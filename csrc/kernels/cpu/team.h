#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <vector>

// The threads that walk one step together. Every member runs the same code; a phase is work cut into units that do not
// depend on each other, and ends in a barrier. Which member computes a unit changes no bit of it.
namespace demiurgic::cpu {

class Team {
public:
    // What barrier() throws in the others once a member has failed.
    struct Stopped : std::exception {};

    explicit Team(int size) : size_(size), taken_{std::vector<Taken>(size), std::vector<Taken>(size)} {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_.load(std::memory_order_relaxed); }

    // A runtime may give fewer threads than asked for; before the first unit, by every member, with the same value.
    void resize(int size) { size_.store(size, std::memory_order_relaxed); }

    // A unit of this phase of `num_units` that nobody has taken, for the member of this index; num_units or more: there is
    // none any more. First come a member's own units, in ascending order: unit % size() is its index. Who has no more of
    // them takes over those of the others.
    int64_t take(int member, int64_t num_units);

    // Waits for all members and begins the next phase. Spins for some microseconds, then yields the core.
    void barrier(int member);

    // Runs `work` as one member: an exception stops the whole team and is kept for rethrow().
    void run_member(const std::function<void()>& work) noexcept;

    // What the first failing member threw, if any did.
    void rethrow() const;

private:
    // How many of a member's units are taken: on a cache line that others touch only when they have no work of their own.
    struct alignas(64) Taken {
        std::atomic<int64_t> count{0};
    };

    int64_t take_of(Taken& taken, int owner) {
        return taken.count.fetch_add(1, std::memory_order_relaxed) * size() + owner;
    }

    void stop(std::exception_ptr error) noexcept;

    std::atomic<int> size_;
    std::vector<Taken> taken_[2];  // of even and of odd phases: a member clears its own of the next phase
    alignas(64) std::atomic<int> num_waiting_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stopped_{false};
    std::atomic<bool> failing_{false};
    std::exception_ptr error_;  // written once, by the member that set failing_, before stopped_
};

}  // namespace demiurgic::cpu
