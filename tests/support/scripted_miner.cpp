#include "support/scripted_miner.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "support/small_run.h"

namespace tessera::test {

Digest seed_state(StageIndex stage) { return digest_of(fmt::format("seed {}", stage)); }

Digest state_after(const Digest& before, const std::vector<core::ShardResult>& results) {
  return digest_of(before.hex() + encode(results));
}

Digest reduced(const std::vector<core::UploadRef>& uploads, const core::ShardTask& task) {
  return digest_of(encode(uploads) + encode(task.first_block) + encode(task.block_count));
}

core::ShardCommit reduction(Epoch target, const std::vector<core::UploadRef>& uploads, const core::ShardTask& task) {
  core::ShardCommit commit{.target = target, .shard = task.shard, .result = reduced(uploads, task)};
  commit.object = digest_of(commit.result.hex() + task.token.hex());
  commit.measures.assign(uploads.size(), {1.0, 0.5});
  return commit;
}

ScriptedMiner::ScriptedMiner(OrchestratorWorld& world, uint64_t number,
                             std::optional<StageIndex> stage)
    : world_(world) {
  registration_.node = node_of(number);
  registration_.incarnation = 1000 * number + 1;
  registration_.address = fmt::format("10.0.0.{}:7000", number);
  registration_.device = "cpu";
  registration_.wanted_stage = stage;
}

core::RegisterAnswer ScriptedMiner::join() {
  core::RegisterAnswer answer = world_.join(registration_);
  if (answer.refusal == core::RegisterRefusal::kNone) {
    index_ = answer.miner;
    stage_ = world_.miner(index_).stage;
  }
  return answer;
}

void ScriptedMiner::restart() {
  registration_.incarnation++;
  ready = told_to_leave = told_to_move = draining = false;
  leases.clear();
  receipts_.clear();
  next_sequence_ = lease_request_ = 1;
  local_steps_ = 0;
  accumulated_ = 0;
  upload_.reset();
  shards_.clear();
  applied_.reset();
  published_.reset();
  checkpoint.reset();
}

core::SyncRequest ScriptedMiner::report() const {
  core::SyncRequest request;
  request.miner = index_;
  request.incarnation = registration_.incarnation;
  request.status.phase = draining ? core::MinerPhase::kDraining
                         : ready  ? core::MinerPhase::kReady
                                  : core::MinerPhase::kLoading;
  request.status.epoch = epoch_;
  request.receipts = receipts_;
  if (ready && !draining && stage_ == 0 && habits.leases) {
    request.lease_request = lease_request_;
    const uint32_t most = world_.state().spec.pipeline.max_in_flight;
    request.leases_wanted = leases.size() >= most ? 0 : most - static_cast<uint32_t>(leases.size());
  }
  request.upload = upload_;
  request.shards = shards_;
  request.unreadable_results = unreadable_;
  request.applied = applied_;
  request.published_state = published_;
  request.checkpoint = checkpoint;
  return request;
}

const core::SyncAnswer& ScriptedMiner::sync() {
  if (index_ == kNoMiner) join();
  if (!world_.sync(node(), report(), &answer_)) {
    join();
    if (!world_.sync(node(), report(), &answer_)) return answer_;
  }
  obey();
  return answer_;
}

void ScriptedMiner::obey() {
  std::erase_if(receipts_, [&](const core::Receipt& r) {
    return r.sequence <= answer_.receipts_acknowledged;
  });
  if (answer_.leave) {
    told_to_leave = true;
    return;
  }
  if (answer_.drain) draining = true;
  if (answer_.assignment && !ready) stage_ = answer_.assignment->stage;
  if (answer_.assignment && answer_.assignment->stage != stage_) {
    told_to_move = draining = true;
    return;
  }
  if (answer_.assignment && habits.loads) load(*answer_.assignment);
  if (!ready || answer_.assignment) return;
  if (answer_.lease_request == lease_request_ && !answer_.leases.empty()) {
    ++lease_request_;
    leases.insert(leases.end(), answer_.leases.begin(), answer_.leases.end());
  }
  if (upload_ && habits.stores) upload_->whole = true;  // at the report after its commitment, soonest
  if (answer_.merge) take_part(*answer_.merge);
  if (answer_.publish_state && habits.publishes) published_ = state_;
  if (answer_.checkpoint == 0) {
    checkpoint.reset();
  } else if (!checkpoint && habits.checkpoints) {
    checkpoint = core::CheckpointCommit{
        .id = answer_.checkpoint,
        .object = digest_of(fmt::format("local {} {}", index_, answer_.checkpoint)),
        .local_steps = local_steps_,
        .schedule_step = local_steps_,
        .weight_version = 0,
        .accumulated = accumulated_};
  }
}

void ScriptedMiner::load(const core::Assignment& assignment) {
  EXPECT_EQ(assignment.stage, stage_);
  ready = true;
  epoch_ = assignment.epoch;
  state_ = assignment.state.is_zero() ? seed_state(stage_) : assignment.state;
  if (spoiled_state) state_ = *spoiled_state;
  spoiled_state.reset();
  if (!assignment.local_state.is_zero()) local_steps_ = std::max<uint64_t>(local_steps_, 1);
  upload_.reset();
  shards_.clear();
  published_.reset();
  applied_ = core::MergeApplied{
      .epoch = epoch_, .state = state_, .version_after = 0, .local_step = local_steps_};
}

void ScriptedMiner::take_part(const core::MergeDirective& merge) {
  ASSERT_EQ(merge.target, epoch_ + 1);
  switch (merge.phase) {
    case core::MergePhase::kSnapshot:
      if (!habits.uploads || (upload_ && upload_->target == merge.target && upload_->again == merge.again)) break;
      upload_ = core::UploadCommit{
          .target = merge.target,
          .object = digest_of(fmt::format("delta {} {} {} {}", index_, incarnation(), local_steps_, merge.again) +
                              state_.hex()),
          .snapshot_step = local_steps_,
          .snapshot_version = local_steps_,
          .whole = habits.stores && !habits.commits_first,
          .again = merge.again};
      break;
    case core::MergePhase::kReduce: {
      if (!habits.reduces) break;
      for (const core::ShardTask& task : merge.tasks) {
        core::ShardCommit commit = reduction(merge.target, merge.uploads, task);
        if (habits.lies) commit.result = digest_of("a lie of " + registration_.node.hex() + commit.result.hex());
        if (habits.cannot_read) {
          commit = {.target = merge.target, .shard = task.shard,
                    .unavailable = merge.uploads.at(*habits.cannot_read).object};
        }
        shards_.push_back(commit);
      }
      break;
    }
    case core::MergePhase::kApply:
      if (!habits.applies) break;
      unreadable_.clear();
      for (const core::ShardResult& result : merge.results) {
        const core::ShardTask task{.first_block = result.first_block, .block_count = result.block_count};
        if (habits.checks && result.result != reduced(merge.uploads, task)) unreadable_.push_back({merge.target, result.first_block});
      }
      if (!unreadable_.empty()) break;
      state_ = state_after(state_, merge.results);
      if (spoiled_state) state_ = *spoiled_state;
      spoiled_state.reset();
      epoch_ = merge.target;
      applied_ = core::MergeApplied{
          .epoch = epoch_, .state = state_, .version_after = 0, .local_step = local_steps_};
      upload_.reset();
      shards_.clear();
      published_.reset();
      break;
  }
}

MinerIndex ScriptedMiner::neighbour(int stages) const {
  uint64_t number = 0;
  std::memcpy(&number, node().bytes.data(), sizeof(number));
  const auto& known = world_.state().by_node;
  const auto found = known.find(node_of(number + static_cast<uint64_t>(100 * stages)));
  return found == known.end() ? kNoMiner : found->second;
}

void ScriptedMiner::receipt(MicrobatchId microbatch, uint32_t attempt, bool accumulated) {
  core::Receipt receipt;
  receipt.sequence = next_sequence_++;
  receipt.incarnation = registration_.incarnation;
  receipt.miner = index_;
  receipt.stage = stage_;
  receipt.microbatch = microbatch;
  receipt.attempt = attempt;
  receipt.upstream = stage_ == 0 ? kNoMiner : neighbour(-1);
  receipt.downstream = stage_ + 1 == world_.state().stages.size() ? kNoMiner : neighbour(1);
  receipt.accumulated = accumulated;
  receipt.forward_ms = microbatch_ms;
  receipt.local_step = local_steps_;
  receipts_.push_back(receipt);
  if (accumulated && ++accumulated_ == world_.state().spec.training.microbatches_per_step) {
    accumulated_ = 0;
    local_steps_++;
  }
}

}  // namespace tessera::test
