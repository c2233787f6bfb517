// Timing of work on a device. For tessera-bench alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace tessera::model {

// Until everything enqueued on the device is done.
void wait_for(const at::Device& device);

// Seconds of one call, the best of `blocks` blocks of `calls` calls each.
double best_seconds(const at::Device& device, uint32_t blocks, uint32_t calls,
                    const std::function<void()>& call);

}  // namespace tessera::model
