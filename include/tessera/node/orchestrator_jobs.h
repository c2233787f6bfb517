// What the orchestrator's background thread does, without the thread: recomputation of shards, checkpoints, other layer
// ranges, new runs, collection of blobs. Each job blocks until it is done.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/events.h"
#include "tessera/core/orchestrator.h"
#include "tessera/node/orchestrator_checkpoint.h"
#include "tessera/node/restage.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/links.h"

namespace tessera::node {

struct NewRun {
  core::RunSpec spec;   // validated
  core::DataPlan data;  // with objects published
};

// Whatever these objects do not need may go.
struct SweepJob {
  std::vector<Digest> live;
  // Of the others those that were put since then stay for audits and traces, the newest first, up to so many bytes.
  TimeMs recent_since_ms = 0;
  uint64_t recent_bytes = 0;
};
// An administrator's run, from the text of its YAML.
struct CreateJob {
  std::string yaml;
  std::function<void(StatusOr<std::string>)> done;
};
// Whether a state that a miner says it has put into the blob store is there, whole.
struct PublishedJob {
  core::StatePublished claim;
  uint64_t stage_values = 0;
};
using OrchestratorJob = std::variant<core::RecomputeShard, core::RemakeState, core::RecheckResult, CheckpointJob, SweepJob, RestageJob, CreateJob, PublishedJob>;

// The run that an administrator wants is prepared, or could not be.
struct CreatedCall {
  StatusOr<NewRun> run;
  std::function<void(StatusOr<std::string>)> done;
};
struct PublishedCall {
  core::StatePublished claim;
  Status status;  // of reading all of it
};
// What the control thread is to be told of a job that is done.
using OrchestratorJobResult = std::variant<core::Event, CreatedCall, PublishedCall>;

class OrchestratorJobs {
 public:
  // Removes the blobs that are not named and not recent; returns the bytes. Empty: nothing is ever removed.
  using SweepBlobs = std::function<StatusOr<uint64_t>(const std::set<Digest>& keep, TimeMs recent_since_ms, uint64_t recent_bytes)>;

  using PrepareRun = std::function<StatusOr<NewRun>(const std::string& yaml)>;

  // `prepare_run` may be empty if no CreateJob is ever given.
  OrchestratorJobs(ports::BlobLink& blobs, ports::CheckpointStore& checkpoints, SweepBlobs sweep, PrepareRun prepare_run)
      : blobs_(blobs), checkpoints_(checkpoints), sweep_(std::move(sweep)), prepare_run_(std::move(prepare_run)) {}

  bool sweeps() const { return sweep_ != nullptr; }
  // What the control thread is to know of the result, if anything.
  std::optional<OrchestratorJobResult> run(const OrchestratorJob& job);

 private:
  core::ShardRecomputed recompute(const core::RecomputeShard& shard);
  core::ResultRechecked recheck(const core::RecheckResult& wanted);
  core::StateRemade remake(const core::RemakeState& wanted);
  core::CheckpointWritten write(const CheckpointJob& job);
  void sweep(const SweepJob& job);

  ports::BlobLink& blobs_;
  ports::CheckpointStore& checkpoints_;
  const SweepBlobs sweep_;
  const PrepareRun prepare_run_;
};

// What a state asks for. A restage must be under way.
SweepJob make_sweep_job(const core::OrchestratorState& state);
RestageJob make_restage_job(const core::OrchestratorState& state);

}  // namespace tessera::node
