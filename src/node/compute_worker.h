// The compute thread: owns the engine, runs one job after the other, answers each with an event.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tessera/base/bounded_queue.h"
#include "tessera/core/miner.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::node {

class ComputeWorker {
 public:
  using MakeEngine = std::function<StatusOr<std::unique_ptr<ports::StageEngine>>()>;
  // `post` takes events from this thread; `fatal` is called once if the engine can't go on (device lost, out of memory).
  ComputeWorker(MakeEngine make_engine, std::function<void(core::MinerEvent)> post, std::function<void(Status)> fatal);
  ~ComputeWorker();

  // Any thread. The queue is longer than the state machine ever fills it.
  void run(core::ComputeJob job);

 private:
  void loop();
  void work(core::miner_effect::Forward& job);
  void work(core::miner_effect::Backward& job);
  void work(core::miner_effect::Discard& job);
  void work(core::miner_effect::OptimizerStep& job);
  void work(core::miner_effect::InstallState& job);
  void work(core::miner_effect::TakeSnapshot& job);
  void work(core::miner_effect::ApplyBase& job);
  void work(core::miner_effect::ExportLocalState& job);
  Status install(const core::miner_effect::InstallState& job, core::miner_event::StateInstalled* done);
  // True if the error ends this process' usefulness; tells `fatal_`.
  bool is_fatal(const Status& status);

  const MakeEngine make_engine_;
  const std::function<void(core::MinerEvent)> post_;
  const std::function<void(Status)> fatal_;
  BoundedQueue<core::ComputeJob> jobs_{1024};
  std::unique_ptr<ports::StageEngine> engine_;
  std::jthread thread_;
};

}  // namespace tessera::node
