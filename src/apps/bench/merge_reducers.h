// The arithmetic of a merge's reduction alone, without the transfers.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/kernels/merge_reducer.h"

namespace tessera::apps {

// Reduces again and again, in groups of blocks and in `threads` threads as a miner's, until it is finished. `device`, which
// outlives it: null is the CPU.
class ReducerLoad {
 public:
  ReducerLoad(kernels::MergeReducer* device, const core::MergeSpec& merge, uint32_t uploads, size_t threads);
  ~ReducerLoad();

  // Counts from now on.
  void restart();
  // Ends it: GB/s of the uploads' fp32 values that passed through it, or the first error.
  StatusOr<double> finish();

 private:
  struct Uploads;
  void work();
  Status reduce(kernels::MergeReducer& reducer, uint64_t first, uint64_t count) const;

  kernels::MergeReducer* const device_;
  const core::MergeSpec merge_;
  const std::unique_ptr<const Uploads> uploads_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> begun_{0}, done_{0};  // groups
  std::mutex mutex_;
  Status failure_;  // guarded by mutex_
  std::chrono::steady_clock::time_point begin_;  // of what is counted
  std::vector<std::jthread> threads_;
};

// Of a second.
StatusOr<double> reducer_rate(kernels::MergeReducer* device, const core::MergeSpec& merge, uint32_t uploads, size_t threads);

}  // namespace tessera::apps
