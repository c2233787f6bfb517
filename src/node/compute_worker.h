// The compute thread around ComputeJobs.
#pragma once

#include <functional>
#include <thread>

#include "tessera/base/bounded_queue.h"
#include "tessera/node/compute_jobs.h"

namespace tessera::node {

class ComputeWorker {
 public:
  // `post` takes events from this thread; `fatal` is called once if the engine can't go on.
  ComputeWorker(ComputeJobs::MakeEngine make_engine, std::function<void(core::MinerEvent)> post,
                std::function<void(Status)> fatal, ComputeJobs::KeepPayload keep);
  ~ComputeWorker();

  // Any thread. The queue is longer than the state machine ever fills it.
  void run(core::ComputeJob job);

 private:
  void loop();

  ComputeJobs work_;
  BoundedQueue<core::ComputeJob> jobs_{1024};
  std::jthread thread_;
};

}  // namespace tessera::node
