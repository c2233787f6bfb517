#include "tessera/node/orchestrator_checkpoint.h"

#include "tessera/base/log.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"

namespace tessera::node {

CheckpointJob make_checkpoint_job(const core::OrchestratorState& state) {
  CheckpointJob job;
  job.id = state.checkpoint_id;
  ports::Checkpoint& out = job.counters;
  out.run_id = state.run_id;
  out.spec = state.spec;
  out.data = state.data;
  out.next_microbatch = state.next_microbatch;
  out.done = state.done;
  for (const auto& [id, open] : state.open) out.open.push_back({id, open.attempt, open.counted_stages});
  for (const core::StageRecord& stage : state.stages) {
    ports::CheckpointStage entry;
    entry.epoch = stage.epoch;
    entry.merges = stage.merges;
    out.stages.push_back(std::move(entry));
    job.stage_states.push_back(stage.state);
  }
  for (const core::MinerRecord& miner : state.miners) {
    if (!miner.checkpoint) continue;
    ports::CheckpointMiner entry;
    entry.node = miner.registration.node;
    entry.stage = miner.stage;
    entry.schedule_step = miner.checkpoint->schedule_step;
    entry.local_steps = miner.checkpoint->local_steps;
    entry.fresh = miner.fresh_total();
    out.miners.push_back(std::move(entry));
    job.local_states.push_back(miner.checkpoint->object);
  }
  return job;
}

StatusOr<std::string> write_checkpoint(ports::BlobLink& blobs, ports::CheckpointStore& checkpoints,
                                       const CheckpointJob& job) {
  ports::Checkpoint checkpoint = job.counters;
  checkpoint.miners.clear();
  for (size_t m = 0; m < job.counters.miners.size(); ++m) {
    ports::CheckpointMiner miner = job.counters.miners[m];
    StatusOr<core::LocalState> state =
        get_local_state(blobs, job.local_states[m], core::stage_value_count(checkpoint.spec, miner.stage));
    if (!state.ok()) {  // whatever a miner committed: the others' checkpoint does not fail for it
      spdlog::warn("checkpoint {}: without the state of miner {}: {}", job.id, miner.node.brief(), message_of(state.status()));
      continue;
    }
    miner.state = *std::move(state);
    checkpoint.miners.push_back(std::move(miner));
  }
  for (StageIndex s = 0; s < checkpoint.stages.size(); ++s) {
    ports::CheckpointStage& stage = checkpoint.stages[s];
    const uint64_t values = core::stage_value_count(checkpoint.spec, s);
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes,
                             get_object(blobs, job.stage_states[s], 2 * values * sizeof(float)));
    const std::string_view view = bytes;
    stage.base = values_of(view.substr(0, view.size() / 2));
    stage.momentum = values_of(view.substr(view.size() / 2));
    stage.weights = stage.base;
    if (checkpoint.spec.merge.enabled) continue;
    // Without merges nobody moves the base: the model is what the stage's first replica has.
    for (const ports::CheckpointMiner& miner : checkpoint.miners) {
      if (miner.stage != s || miner.state.masters.size() != values) continue;
      stage.weights = miner.state.masters;
      break;
    }
  }
  return checkpoints.write(checkpoint);
}

StatusOr<core::RunResumed> publish_checkpoint(ports::BlobLink& blobs, const ports::Checkpoint& checkpoint,
                                              const core::RunSpec& spec, const core::DataPlan& data) {
  if (checkpoint.stages.size() != spec.pipeline.stages) {
    return failed_precondition("the checkpoint has {} stages, pipeline.stages is {}", checkpoint.stages.size(),
                               spec.pipeline.stages);
  }
  if (checkpoint.spec.training.microbatch_size != spec.training.microbatch_size ||
      checkpoint.spec.model.context != spec.model.context || checkpoint.spec.training.seed != spec.training.seed) {
    return failed_precondition("training.microbatch_size, model.context and training.seed must be the checkpoint's ({}, {}, "
                               "{}): they say which data was seen", checkpoint.spec.training.microbatch_size,
                               checkpoint.spec.model.context, checkpoint.spec.training.seed);
  }
  core::RunResumed resumed;
  resumed.run_spec = encode(spec);
  resumed.data_plan = encode(data);
  resumed.next_microbatch = checkpoint.next_microbatch;
  resumed.done = checkpoint.done;
  resumed.open = checkpoint.open;
  for (StageIndex s = 0; s < checkpoint.stages.size(); ++s) {
    const ports::CheckpointStage& stage = checkpoint.stages[s];
    const uint64_t values = core::stage_value_count(spec, s);
    if (stage.base.size() != values || stage.momentum.size() != values || stage.weights.size() != values) {
      return failed_precondition("stage {} has {} values in the checkpoint and {} by these settings: model, boundary and "
                                 "stages must be the checkpoint's", s, stage.base.size(), values);
    }
    // With merges the weights are the base. Without them they are what a replica without a state of its own begins with.
    TESSERA_ASSIGN_OR_RETURN(const Digest state, put_object(blobs, encode_stage_state(stage.weights, stage.momentum)));
    resumed.stages.push_back({stage.epoch, state, stage.merges});
  }
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    TESSERA_ASSIGN_OR_RETURN(const Digest object, put_local_state(blobs, miner.state));
    resumed.miners.push_back({miner.node, miner.stage, object, miner.schedule_step, miner.fresh,
                              miner.state.gradient_microbatches});
  }
  return resumed;
}

}  // namespace tessera::node
