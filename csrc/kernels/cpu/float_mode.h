#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace demiurgic::cpu {

// Round to nearest and keep subnormals while it lives, whatever the thread is set to: torch.set_flush_denormal sets the
// calling thread alone, and a unit of work must give the same bits on every thread.
class DefaultFloatMode {
#if defined(__x86_64__)
public:
    DefaultFloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatMode() { _mm_setcsr(before_); }

private:
    unsigned before_;
#elif defined(__aarch64__)
public:
    DefaultFloatMode() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
    }
    ~DefaultFloatMode() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

private:
    uint64_t before_;
#else
public:
    DefaultFloatMode() {}
#endif
};

}  // namespace demiurgic::cpu
