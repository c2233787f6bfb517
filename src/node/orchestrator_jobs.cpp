#include "tessera/node/orchestrator_jobs.h"

#include "live_blobs.h"
#include "tessera/base/log.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/objects.h"

namespace tessera::node {

SweepJob make_sweep_job(const core::OrchestratorState& state) {
  SweepJob job{.live = live_objects(state)};
  if (!state.spec.audit.enabled) return job;
  job.recent_since_ms = core::payloads_kept_since(state.audits, state.spec.audit);
  job.recent_bytes = state.spec.audit.retention_bytes;
  return job;
}

RestageJob make_restage_job(const core::OrchestratorState& state) {
  RestageJob job{.id = state.restage->id, .before = state.spec, .after = state.spec, .states = {}};
  job.after.pipeline.stage_layers = state.restage->stage_layers;
  for (const core::StageRecord& stage : state.stages) job.states.push_back(stage.state);
  return job;
}

std::optional<OrchestratorJobResult> OrchestratorJobs::run(const OrchestratorJob& job) {
  if (const auto* shard = std::get_if<core::RecomputeShard>(&job)) return core::Event(recompute(*shard));
  if (const auto* checkpoint = std::get_if<CheckpointJob>(&job)) return core::Event(write(*checkpoint));
  if (const auto* stages = std::get_if<RestageJob>(&job)) return core::Event(restage(blobs_, *stages));
  if (const auto* wanted = std::get_if<CreateJob>(&job)) return CreatedCall{prepare_run_(wanted->yaml), wanted->done};
  if (const auto* published = std::get_if<PublishedJob>(&job)) {
    return PublishedCall{published->claim,
                         check_object(blobs_, published->claim.state, 2 * published->stage_values * sizeof(float))};
  }
  sweep(std::get<SweepJob>(job));
  return std::nullopt;
}

core::ShardRecomputed OrchestratorJobs::recompute(const core::RecomputeShard& shard) {
  const ReduceInputs inputs{.uploads = shard.uploads,
                            .first_block = shard.first_block,
                            .block_count = shard.block_count,
                            .stage_values = shard.stage_values,
                            .merge = shard.merge,
                            .rounding_key = shard.rounding_key,
                            .token = shard.token};
  core::ShardRecomputed done{.stage = shard.stage, .commit = {.target = shard.target, .shard = shard.shard}, .unreadable = {}};
  StatusOr<Reduction> reduction = reduce_shard(blobs_, inputs);
  if (reduction.ok()) {
    done.commit.result = reduction->result;
    done.commit.object = reduction->object;
    done.commit.measures = std::move(reduction->measures);
  } else {
    spdlog::warn("recomputing a shard: {}", message_of(reduction.status()));
    done.unreadable = unreadable_uploads(blobs_, inputs);
  }
  return done;
}

core::CheckpointWritten OrchestratorJobs::write(const CheckpointJob& job) {
  const StatusOr<std::string> where = write_checkpoint(blobs_, checkpoints_, job);
  return {job.id, where.ok(), where.ok() ? *where : message_of(where.status())};
}

void OrchestratorJobs::sweep(const SweepJob& job) {
  if (!sweep_) return;
  const StatusOr<uint64_t> removed = sweep_(blobs_of(blobs_, job.live), job.recent_since_ms, job.recent_bytes);
  if (!removed.ok()) {
    spdlog::warn("collecting unneeded blobs: {}", message_of(removed.status()));
  } else if (*removed > 0) {
    spdlog::info("removed {} bytes of blobs that nothing needs any more", *removed);
  }
}

}  // namespace tessera::node
