// What the simulated processes' compute and background threads do.
#include <fmt/format.h>

#include <algorithm>

#include "support/scripted_miner.h"
#include "support/simulated_swarm.h"
#include "tessera/base/crypto.h"

namespace tessera::test {

void SimulatedSwarm::compute(size_t p, core::ComputeJob job) {
  Process& process = processes_[p];
  process.compute_free_at = std::max(process.compute_free_at, now_) + delay(3);
  in_process(p, process.compute_free_at,
             [this, p, job = std::make_shared<core::ComputeJob>(std::move(job))](Process& me) {
               if (auto* discard = std::get_if<core::miner_effect::Discard>(&*job)) {
                 me.held.erase(discard->key);
               } else {
                 step(p, computed(me, *job));
               }
             });
}

// What an engine would do, and what it would complain about.
core::MinerEvent SimulatedSwarm::computed(Process& me, core::ComputeJob& job) {
  if (auto* forward = std::get_if<core::miner_effect::Forward>(&job)) {
    require(me.held.insert(forward->key).second, "the same forward twice");
    if (fault(0.01)) return core::miner_event::ComputeFailed{forward->key, "a simulated failure"};
    return core::miner_event::ForwardDone{forward->key, {0, "z"}, {}, 1.0, me.weight_version, 1};
  }
  if (auto* backward = std::get_if<core::miner_effect::Backward>(&job)) {
    require(me.held.erase(backward->key) == 1, "a backward of what is not held");
    if (backward->accumulate) {
      require(me.gradients.insert(backward->key.microbatch).second,
              "a microbatch accumulated twice by one process");
      me.accumulated++;
    }
    return core::miner_event::BackwardDone{backward->key, {0, "g"}, {}, 1};
  }
  if (std::holds_alternative<core::miner_effect::OptimizerStep>(job)) {
    require(me.accumulated == spec_.training.microbatches_per_step,
            "a step with another number of gradients");
    me.accumulated = 0;
    return core::miner_event::StepDone{true, 1, ++me.weight_version, ""};
  }
  const auto masters = std::make_shared<const std::vector<float>>(1, 0.0f);
  if (auto* install = std::get_if<core::miner_effect::InstallState>(&job)) {
    core::miner_event::StateInstalled done{true, "", ++me.weight_version, me.accumulated, nullptr};
    if (!install->masters) done.initial_masters = masters;
    return done;
  }
  if (auto* snapshot = std::get_if<core::miner_effect::TakeSnapshot>(&job)) {
    return core::miner_event::SnapshotTaken{snapshot->target, masters, me.weight_version};
  }
  if (auto* base = std::get_if<core::miner_effect::ApplyBase>(&job)) {
    return core::miner_event::BaseApplied{base->target, ++me.weight_version};
  }
  return core::miner_event::LocalStateExported{
      std::get<core::miner_effect::ExportLocalState>(job).id, std::make_shared<core::LocalState>()};
}

void SimulatedSwarm::background(size_t p, core::BackgroundJob job) {
  Process& process = processes_[p];
  process.background_free_at = std::max(process.background_free_at, now_) + delay(10);
  in_process(p, process.background_free_at,
             [this, p, job = std::make_shared<core::BackgroundJob>(std::move(job))](Process& me) {
               step(p, worked(me, *job));
             });
}

// Tensors are their names here: see scripted_miner.h.
core::MinerEvent SimulatedSwarm::worked(Process& me, core::BackgroundJob& job) {
  const bool fails = fault(0.03);
  const StageIndex stage = me.miner->stage().value();
  if (auto* fetch = std::get_if<core::miner_effect::FetchState>(&job)) {
    const core::Assignment& assignment = fetch->assignment;
    core::miner_event::StateFetched done;
    done.ok = !fails && (assignment.state.is_zero() || blobs_.count(assignment.state) > 0);
    require(fails || done.ok, "assigned a state that was never published");
    me.base = assignment.state;
    me.epoch = assignment.epoch;
    done.state = assignment.state;
    if (!assignment.state.is_zero())
      done.masters = std::make_shared<const std::vector<float>>(1, 0.0f);
    return done;
  }
  if (std::holds_alternative<core::miner_effect::AdoptBase>(job)) {
    me.base = seed_state(stage);
    return core::miner_event::BaseAdopted{me.base};
  }
  if (auto* upload = std::get_if<core::miner_effect::UploadDelta>(&job)) {
    const Digest object =
        digest_of(fmt::format("{} {} {}", me.incarnation, upload->target, upload->snapshot_step));
    if (!fault(0.05)) blobs_.insert(object);  // else it commits what nobody can read
    return core::miner_event::DeltaUploaded{
        {upload->target, object, upload->snapshot_step, upload->snapshot_version}, !fails, ""};
  }
  if (auto* reduce = std::get_if<core::miner_effect::ReduceShard>(&job)) {
    const bool readable =
        std::all_of(reduce->uploads.begin(), reduce->uploads.end(),
                    [&](const core::UploadRef& upload) { return blobs_.count(upload.object) > 0; });
    Digest object = reduced(reduce->uploads, reduce->task);
    if (fault(0.15)) object = digest_of(fmt::format("a lie of {}", me.number));
    blobs_.insert(object);
    return core::miner_event::ShardReduced{
        {reduce->target, reduce->task.shard, object}, readable && !fails, ""};
  }
  if (auto* prepare = std::get_if<core::miner_effect::PrepareBase>(&job)) {
    core::miner_event::BasePrepared done;
    done.target = prepare->target;
    done.ok = !fails && prepare->target == me.epoch + 1;
    if (!done.ok) return done;
    for (const core::ShardResult& result : prepare->results) {
      require(blobs_.count(result.object) > 0, "a merge's result that nobody has");
    }
    me.base = done.state = state_after(me.base, prepare->results);
    me.epoch = prepare->target;
    return done;
  }
  if (auto* publish = std::get_if<core::miner_effect::PutOutState>(&job)) {
    const bool ok = !fails && publish->epoch == me.epoch;
    if (ok) blobs_.insert(me.base);
    return core::miner_event::StatePutOut{publish->epoch, me.base, ok, ""};
  }
  if (auto* save = std::get_if<core::miner_effect::SaveLocalState>(&job)) {
    return core::miner_event::LocalStateSaved{save->about.steps, !fails, ""};
  }
  const uint64_t id = std::get<core::miner_effect::UploadLocalState>(job).id;
  return core::miner_event::LocalStateUploaded{
      id, digest_of(fmt::format("{} {}", me.incarnation, id)), !fails, ""};
}

}  // namespace tessera::test
