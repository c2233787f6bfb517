// The threads of one transfer of a merge.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::node {

inline constexpr size_t kMergeWorkers = 4;  // that compute
inline constexpr size_t kMergeTransfers = 8;  // that wait for the network most of the time: enough calls to fill a link of 100 ms

// Runs `work` in `threads` threads, the caller's one of them, until all of them return. `work` shares out what is to be done.
inline void run_together(size_t threads, const std::function<void()>& work) {
  std::vector<std::jthread> others;
  for (size_t i = 1; i < threads; ++i) others.emplace_back(work);
  work();
}

}  // namespace tessera::node
