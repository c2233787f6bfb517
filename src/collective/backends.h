// c10d's backends, made one a worker.
#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

namespace tessera::collective {

struct WorkerPlace {
  int rank = 0;
  int size = 1;
  at::Device device = at::kCPU;
  std::chrono::milliseconds timeout;
};

// Each returns when all workers have called it, each in its own thread, with the same store. They throw what torch throws.
c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store, const WorkerPlace& place);
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, const WorkerPlace& place);

}  // namespace tessera::collective
