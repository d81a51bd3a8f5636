#undef _FORTIFY_SOURCE  // its longjmp takes a jump to another stack for a fault
#include "simt.h"

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

namespace {

constexpr size_t kStackBytes = 256 << 10;

enum class State { ready, at_warp, at_block, done };

// Fibers start by setcontext and change places by longjmp: swapcontext asks the system for the signal mask every time.
struct Fiber {
    ucontext_t start;
    bool started = false;
    jmp_buf left;  // where it yielded
    std::unique_ptr<char[]> stack;
    uint3 index;
    State state;
    // Where it waits, and with what.
    const char* name;
    std::source_location place;
    unsigned mask;
    void* payload;
    Combine combine;
};

struct FreeAligned {
    void operator()(void* memory) const { operator delete(memory, std::align_val_t{16}); }
};

jmp_buf scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block; those of a kernel that failed are not
const std::function<void()>* thread_function;
std::exception_ptr thrown;
Fiber* current;
unsigned current_number;
std::unique_ptr<void, FreeAligned> shared;

// AddressSanitizer has to know whose stack is in use.
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#ifdef __SANITIZE_ADDRESS__
void leave_for(void** own, const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(own, stack, bytes); }
void arrived(void* own, const void** from, size_t* bytes) { __sanitizer_finish_switch_fiber(own, from, bytes); }
#else
void leave_for(void**, const void*, size_t) {}
void arrived(void*, const void**, size_t*) {}
#endif

void resume(unsigned number) {
    current = fibers[number].get();
    current_number = number;
    threadIdx = current->index;
    void* own = nullptr;
    leave_for(&own, current->stack.get(), kStackBytes);
    if (_setjmp(scheduler) == 0) {
        if (std::exchange(current->started, true)) _longjmp(current->left, 1);
        setcontext(&current->start);
    }
    arrived(own, nullptr, nullptr);
}

void yield() {
    void* own = nullptr;
    leave_for(&own, scheduler_stack, scheduler_stack_bytes);
    if (_setjmp(current->left) == 0) _longjmp(scheduler, 1);
    arrived(own, &scheduler_stack, &scheduler_stack_bytes);
}

// A fiber's whole life: one thread of each block after another.
void live() {
    arrived(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    while (true) {
        try {
            (*thread_function)();
        } catch (...) {
            thrown = std::current_exception();
        }
        current->state = State::done;
        yield();
    }
}

std::unique_ptr<Fiber> new_fiber() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.reset(new char[kStackBytes]);
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack.get();
    fiber->start.uc_stack.ss_size = kStackBytes;
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, live, 0);
    return fiber;
}

std::string text_of(const uint3& index) {
    std::ostringstream text;
    text << '(' << index.x << ", " << index.y << ", " << index.z << ')';
    return text.str();
}

std::string place_of(const Fiber& fiber) {
    if (fiber.state == State::done) return "has returned";
    const std::string file = fiber.place.file_name();
    return std::string("waits at ") + fiber.name + ", " + file.substr(file.rfind('/') + 1) + ":" +
           std::to_string(fiber.place.line());
}

[[noreturn]] void fail(const std::string& sentence) {
    throw std::runtime_error("in block " + text_of(blockIdx) + " " + sentence);
}

[[noreturn]] void fail_apart(const Fiber& waits, const Fiber& other) {
    fail("thread " + text_of(waits.index) + " " + place_of(waits) + ", but thread " + text_of(other.index) + " " +
         place_of(other));
}

// Lets go the lanes of a mask that have all come to one collective.
bool release_lanes(unsigned first, unsigned num_threads, unsigned lane) {
    const Fiber& waits = *fibers[first + lane];
    if (!(waits.mask >> lane & 1)) {
        fail("thread " + text_of(waits.index) + " " + place_of(waits) + " with a mask that leaves itself out");
    }
    void* payloads[32] = {};
    for (unsigned other = 0; other < 32; ++other) {
        if (!(waits.mask >> other & 1)) continue;
        if (first + other >= num_threads) {
            fail("thread " + text_of(waits.index) + " " + place_of(waits) + " for lane " + std::to_string(other) +
                 " of a warp that is cut off");
        }
        const Fiber& fiber = *fibers[first + other];
        if (fiber.state == State::done) fail_apart(waits, fiber);
        if (fiber.state != State::at_warp || fiber.combine != waits.combine || fiber.mask != waits.mask) return false;
        payloads[other] = fiber.payload;
    }
    waits.combine(payloads);
    for (unsigned other = 0; other < 32; ++other) {
        if (payloads[other]) fibers[first + other]->state = State::ready;
    }
    return true;
}

bool release_block(unsigned num_threads) {
    const Fiber& waits = *fibers[0];
    for (unsigned i = 0; i < num_threads; ++i) {
        const Fiber& fiber = *fibers[i];
        if (fiber.state != State::at_block) return false;
        if (fiber.place.line() != waits.place.line() ||
            std::strcmp(fiber.place.file_name(), waits.place.file_name()) != 0) {
            fail_apart(waits, fiber);
        }
    }
    for (unsigned i = 0; i < num_threads; ++i) fibers[i]->state = State::ready;
    return true;
}

bool release(unsigned num_threads) {
    bool any = false;
    for (unsigned i = 0; i < num_threads; ++i) {
        if (fibers[i]->state == State::at_warp) any |= release_lanes(i / 32 * 32, num_threads, i % 32);
    }
    return any || release_block(num_threads);
}

// All wait, and none for what can still happen.
[[noreturn]] void fail_hanging(unsigned num_threads) {
    for (unsigned i = 0; i < num_threads; ++i) {
        for (unsigned k = 0; k < num_threads; ++k) {
            const Fiber &one = *fibers[i], &other = *fibers[k];
            const bool apart = one.state != other.state || one.combine != other.combine || one.mask != other.mask;
            if (one.state != State::done && apart && (one.state == State::at_block || i / 32 == k / 32)) {
                fail_apart(one, other);
            }
        }
    }
    fail("the threads wait for each other");
}

void run_threads(unsigned num_threads) {
    while (true) {
        bool all_done = true;
        for (unsigned i = 0; i < num_threads; ++i) {
            const unsigned number = order == Order::forward ? i : num_threads - 1 - i;
            if (fibers[number]->state == State::ready) resume(number);
            if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
            all_done &= fibers[number]->state == State::done;
        }
        if (all_done) return;
        if (!release(num_threads)) fail_hanging(num_threads);
    }
}

void run_block(Index block, size_t shared_bytes) {
    shared.reset(operator new(shared_bytes, std::align_val_t{16}));
    std::memset(shared.get(), 0xff, shared_bytes);
    unsigned number = 0;
    for (unsigned z = 0; z < block.z; ++z) {
        for (unsigned y = 0; y < block.y; ++y) {
            for (unsigned x = 0; x < block.x; ++x) {
                if (number == fibers.size()) fibers.push_back(new_fiber());
                fibers[number]->index = {x, y, z};
                fibers[number]->state = State::ready;
                ++number;
            }
        }
    }
    run_threads(number);
}

}  // namespace

void run(Index grid, Index block, size_t shared_bytes, const std::function<void()>& thread) {
    ++num_launches;
    thread_function = &thread;
    gridDim = {grid.x, grid.y, grid.z};
    blockDim = {block.x, block.y, block.z};
    try {
        const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
        for (uint64_t i = 0; i < num_blocks; ++i) {
            const uint64_t number = order == Order::forward ? i : num_blocks - 1 - i;
            blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                        static_cast<unsigned>(number / grid.x / grid.y)};
            run_block(block, shared_bytes);
        }
    } catch (...) {
        fibers.clear();  // some stand in the middle of the kernel
        shared.reset();
        throw;
    }
    shared.reset();
}

void* dynamic_shared() { return shared.get(); }

void meet_warp(const char* name, unsigned mask, void* payload, Combine combine, std::source_location place) {
    current->state = State::at_warp;
    current->name = name;
    current->place = place;
    current->mask = mask;
    current->payload = payload;
    current->combine = combine;
    yield();
}

void meet_block(const char* name, std::source_location place) {
    current->state = State::at_block;
    current->name = name;
    current->place = place;
    current->combine = nullptr;
    current->mask = 0;
    yield();
}

unsigned lane() { return current_number % 32; }

}  // namespace simt
