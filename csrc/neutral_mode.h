#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace demiurgic {

// The user's process may be in any mode of torch; generation has one of its own, on a device and stream of its own, and
// leaves the other as it was.
struct NeutralMode {
    explicit NeutralMode(c10::Stream stream) : stream_guard(stream) {}

    c10::InferenceMode no_inference_mode{false};
    at::NoGradGuard no_grad;
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
    c10::StreamGuard stream_guard;
};

}  // namespace demiurgic
