// What the orchestrator's background thread does, without the thread: recomputation of shards, checkpoints, collection of
// blobs. Each job blocks until it is done.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/events.h"
#include "tessera/core/orchestrator.h"
#include "tessera/node/orchestrator_checkpoint.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Whatever these objects do not need may go.
struct SweepJob {
  std::vector<Digest> live;
};
using OrchestratorJob = std::variant<core::RecomputeShard, CheckpointJob, SweepJob>;

class OrchestratorJobs {
 public:
  // Removes the blobs that are not named and not recent; returns the bytes. Empty: nothing is ever removed.
  using SweepBlobs = std::function<StatusOr<uint64_t>(const std::set<Digest>& keep)>;

  OrchestratorJobs(const core::RunSpec& spec, ports::BlobLink& blobs, ports::CheckpointStore& checkpoints, SweepBlobs sweep)
      : spec_(spec), blobs_(blobs), checkpoints_(checkpoints), sweep_(std::move(sweep)) {}

  bool sweeps() const { return sweep_ != nullptr; }
  // The event that tells the state machine of the result, if it is to know.
  std::optional<core::Event> run(const OrchestratorJob& job);

 private:
  core::ShardRecomputed recompute(const core::RecomputeShard& shard);
  core::CheckpointWritten write(const CheckpointJob& job);
  void sweep(const SweepJob& job);

  const core::RunSpec spec_;
  ports::BlobLink& blobs_;
  ports::CheckpointStore& checkpoints_;
  const SweepBlobs sweep_;
};

// The sweep of a state.
SweepJob make_sweep_job(const core::OrchestratorState& state);

}  // namespace tessera::node
