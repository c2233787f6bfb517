// Groups of the workers of one process: c10d's process groups, gloo between CPUs, NCCL between GPUs. No torch here.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/ports/collective.h"

namespace tessera::collective {

// Settings of NCCL and c10d that live in the environment; what the environment has already is respected. c10d must not end
// the process by itself (the miner does, with a message), and NVLink multicast stays off. To be called before the first
// other thread of the program begins.
void prepare_process();

// One group of as many workers as devices, all "cpu" or each its own "cuda:N"; element i is worker i's end. `timeout`: of
// one operation, after which it fails.
StatusOr<std::vector<std::unique_ptr<ports::CollectiveGroup>>> make_groups(const std::vector<std::string>& devices,
                                                                           std::chrono::milliseconds timeout);

// Workers that share one device: for tests and for measuring memory where there is a single GPU, on which NCCL makes no
// group. Operations are done when they return, one after another and without a time limit: a worker that stays away holds
// the others up.
std::vector<std::unique_ptr<ports::CollectiveGroup>> make_shared_device_groups(const std::string& device, size_t workers);

}  // namespace tessera::collective
