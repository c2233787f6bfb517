// The background thread of a miner around BackgroundJobs.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "tessera/base/bounded_queue.h"
#include "tessera/node/background_jobs.h"

namespace tessera::node {

class BackgroundWorker {
 public:
  BackgroundWorker(const core::RunSpec& spec, ports::BlobLink& blobs, std::string directory, std::string run_id,
                   std::function<void(core::MinerEvent)> post, Donations donations, kernels::MergeReducer* reducer);
  ~BackgroundWorker();

  // Any thread.
  void run(core::BackgroundJob job);

 private:
  void loop();

  BackgroundJobs work_;
  BoundedQueue<core::BackgroundJob> jobs_{65536};
  std::jthread thread_;
};

}  // namespace tessera::node
