// The threads of a box, one for each of its devices, each with its ShardWorker.
#pragma once

#include <c10/core/Device.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "model/shard_worker.h"
#include "tessera/base/status.h"
#include "tessera/model/stage_engine.h"
#include "tessera/ports/collective.h"

namespace tessera::model {

// Used by one thread. A worker that fails ends the box: the group is aborted, the others come back, and from then on every
// call answers with the first failure.
class BoxWorkers {
 public:
  // spec.training.microbatch_size is the whole microbatch's. `threads`: of the CPU for each worker; 0: torch's choice.
  static StatusOr<std::unique_ptr<BoxWorkers>> create(const core::RunSpec& spec, StageIndex stage, const BoxOptions& box,
                                                      int threads);
  ~BoxWorkers();

  // Runs work(worker, its number) on all threads, and waits until all are done.
  using Work = std::function<Status(ShardWorker&, size_t)>;
  Status run(const char* what, const Work& work);
  // The same without waiting; run() or finish() must follow.
  void start(const char* what, Work work);
  Status finish();

  // Called by a worker on its way: the caller of wait_until() may go on when all have.
  void signal();
  // Until every worker has called signal() since start(), or one has failed.
  Status wait_until_signalled();

  size_t size() const { return threads_.size(); }
  const std::vector<at::Device>& devices() const { return devices_; }
  const at::Device& device(size_t worker) const { return devices_[worker]; }
  ShardWorker& worker(size_t index) { return *workers_[index]; }

 private:
  BoxWorkers() = default;
  using Task = std::function<Status(size_t)>;
  void start_task(const char* what, Task task);
  void loop(size_t index, int threads);
  void fail(size_t index, const Status& status);

  std::vector<at::Device> devices_;
  std::vector<std::shared_ptr<ports::CollectiveGroup>> groups_;
  std::vector<std::unique_ptr<ShardWorker>> workers_;  // element i is thread i's

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t round_ = 0;  // counts start()
  size_t running_ = 0;
  size_t signals_ = 0;
  bool stopping_ = false;
  const char* what_ = "";
  Task task_;
  Status failure_ = ok_status();
  std::vector<std::jthread> threads_;
};

}  // namespace tessera::model
