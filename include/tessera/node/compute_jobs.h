// What a miner's compute thread does, without the thread: owns the engine, runs one job after the other, answers each with
// an event (Discard has none, a backward has two). Each job blocks until it is done.
#pragma once

#include <functional>
#include <memory>

#include "tessera/base/status.h"
#include "tessera/core/miner_events.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::node {

class ComputeJobs {
 public:
  using MakeEngine = std::function<StatusOr<std::unique_ptr<ports::StageEngine>>()>;
  // Every boundary tensor that came in or went out, for audits. Called by the compute thread; must not wait. May be empty.
  using KeepPayload = std::function<void(const core::BoundaryPayload&)>;
  // `post` takes the events; `fatal` is called if the engine can't go on (device lost, out of memory); `clock_ms` says what
  // time it is, to measure jobs.
  ComputeJobs(MakeEngine make_engine, std::function<void(core::MinerEvent)> post, std::function<void(Status)> fatal,
              std::function<double()> clock_ms, KeepPayload keep = {})
      : make_engine_(std::move(make_engine)),
        post_(std::move(post)),
        fatal_(std::move(fatal)),
        clock_ms_(std::move(clock_ms)),
        keep_(std::move(keep)) {}

  void run(core::ComputeJob& job);

 private:
  void work(core::miner_effect::Forward& job);
  void work(core::miner_effect::Backward& job);
  void work(core::miner_effect::Discard& job);
  void work(core::miner_effect::OptimizerStep& job);
  void work(core::miner_effect::InstallState& job);
  void work(core::miner_effect::TakeSnapshot& job);
  void work(core::miner_effect::ApplyBase& job);
  void work(core::miner_effect::ExportLocalState& job);
  void work(core::miner_effect::ExportSegment& job);
  void keep(const core::BoundaryPayload& payload) const {
    if (keep_ && !payload.bytes.empty()) keep_(payload);
  }
  Status install(const core::miner_effect::InstallState& job, core::miner_event::StateInstalled* done);
  // True if the error ends this process' usefulness; tells `fatal_`.
  bool is_fatal(const Status& status);

  const MakeEngine make_engine_;
  const std::function<void(core::MinerEvent)> post_;
  const std::function<void(Status)> fatal_;
  const std::function<double()> clock_ms_;
  const KeepPayload keep_;
  std::unique_ptr<ports::StageEngine> engine_;
};

}  // namespace tessera::node
