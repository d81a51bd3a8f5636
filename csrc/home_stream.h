#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <exception>

namespace demiurgic {

// The stream that all of an engine's work is queued on, whichever thread queues it: the one that was current where the engine
// was made. What the engine allocates is so used on one stream only, and torch's allocator, which goes by the stream that
// memory was allocated on, hands it out again in time. Where a device has no streams, all are equal and nothing is done.
class HomeStream {
public:
    explicit HomeStream(at::Device device) : home_(current(device)) {}

    c10::Stream stream() const { return home_; }

    // While a thread calls the engine. What is queued at home from then on comes after what the thread's current stream has
    // got, an optimizer's step for instance; what that stream gets after the visit comes after all that is queued at home.
    class Visit {
    public:
        explicit Visit(const HomeStream& home) : home_(home.home_), caller_(current(home.home_.device())) {
            put_in_order(caller_, home_);
        }
        ~Visit() { put_in_order(home_, caller_); }
        Visit(const Visit&) = delete;
        Visit& operator=(const Visit&) = delete;

    private:
        const c10::Stream home_, caller_;
    };

private:
    static c10::Stream current(at::Device device) {
        return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    }

    // Throws nothing, for calls are cancelled by destructors too: where it fails the device is lost, as whatever is done
    // next will say.
    static void put_in_order(const c10::Stream& first, const c10::Stream& second) noexcept try {
        if (first == second) return;
        c10::Event event(first.device_type());
        event.record(first);
        event.block(second);
    } catch (const std::exception&) {
        return;
    }

    const c10::Stream home_;
};

}  // namespace demiurgic
