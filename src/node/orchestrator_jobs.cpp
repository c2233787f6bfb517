#include "tessera/node/orchestrator_jobs.h"

#include "live_blobs.h"
#include "tessera/base/crypto.h"
#include "tessera/base/log.h"
#include "tessera/kernels/merge.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
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
  if (const auto* wanted = std::get_if<core::RemakeState>(&job)) return core::Event(remake(*wanted));
  if (const auto* wanted = std::get_if<core::RecheckResult>(&job)) return core::Event(recheck(*wanted));
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
                            .stage_values = shard.stage_values,
                            .merge = shard.merge,
                            .rounding_key = shard.rounding_key};
  const core::ShardTask task{shard.shard, shard.first_block, shard.block_count, shard.token};
  core::ShardRecomputed done{.stage = shard.stage,
                             .commit = {.target = shard.target, .shard = shard.shard},
                             .unreadable = {},
                             .resumes = shard.resumes};
  StatusOr<Reduction> reduction = reduce_shard(blobs_, inputs, task);
  if (reduction.ok()) {
    done.commit.result = reduction->result;
    done.commit.object = reduction->object;
    done.commit.measures = std::move(reduction->measures);
  } else {
    spdlog::warn("recomputing a shard: {}", message_of(reduction.status()));
    done.unreadable = unreadable_uploads(blobs_, inputs, task);
  }
  return done;
}

namespace {

StatusOr<Digest> remade(ports::BlobLink& blobs, const core::RemakeState& wanted) {
  const core::PastMerge& past = wanted.past;
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, get_object(blobs, past.from, 2 * wanted.stage_values * sizeof(float)));
  std::vector<float> base = values_of(std::string_view(bytes).substr(0, bytes.size() / 2));
  std::vector<float> momentum = values_of(std::string_view(bytes).substr(bytes.size() / 2));
  KeptBlobs link(blobs);
  const auto remake_shard = [&](const core::ShardResult& shard) -> StatusOr<core::ResultCopy> {
    const Digest token = digest_of(shard.result.view());
    const ReduceInputs inputs{.uploads = past.uploads,
                              .stage_values = wanted.stage_values,
                              .merge = wanted.merge,
                              .rounding_key = wanted.rounding_key};
    const core::ShardTask task{.first_block = shard.first_block, .block_count = shard.block_count, .token = token};
    TESSERA_ASSIGN_OR_RETURN(const Reduction made, reduce_shard(link, inputs, task));
    return core::ResultCopy{made.object, token};
  };
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> mean,
                           fetch_mean(link, wanted.merge, wanted.stage_values, past.results, remake_shard));
  kernels::outer_step_cpu(base.data(), momentum.data(), mean.data(), wanted.stage_values,
                          static_cast<float>(past.outer_learning_rate), static_cast<float>(past.outer_momentum));
  return put_object(blobs, encode_stage_state(base, momentum));
}

}  // namespace

core::StateRemade OrchestratorJobs::remake(const core::RemakeState& wanted) {
  core::StateRemade done{.stage = wanted.stage, .epoch = wanted.past.target, .state = {}, .why = {}};
  const StatusOr<Digest> state = remade(blobs_, wanted);
  if (state.ok()) {
    done.state = *state;
  } else {
    done.why = message_of(state.status());
  }
  return done;
}

core::ResultRechecked OrchestratorJobs::recheck(const core::RecheckResult& wanted) {
  const core::ShardResult& result = wanted.result;
  core::ResultRechecked done{.stage = wanted.stage, .target = wanted.target, .first_block = result.first_block, .result = {},
                             .copy = {}, .why = {}};
  const Status seen = check_result(blobs_, wanted.merge, wanted.stage_values, result);
  done.readable = seen.ok();
  if (done.readable) return done;
  // Nobody's secret any more: the merge is complete.
  const Digest token = digest_of(result.result.view());
  const ReduceInputs inputs{.uploads = wanted.uploads,
                            .stage_values = wanted.stage_values,
                            .merge = wanted.merge,
                            .rounding_key = wanted.rounding_key};
  const core::ShardTask task{.first_block = result.first_block, .block_count = result.block_count, .token = token};
  // A store that does not answer is nobody's fault.
  const StatusOr<Reduction> made =
      absl::IsUnavailable(seen) ? StatusOr<Reduction>(seen) : reduce_shard(blobs_, inputs, task);
  if (made.ok()) {
    done.result = made->result;
    done.copy = {made->object, token};
  } else {
    done.why = message_of(made.status());
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
