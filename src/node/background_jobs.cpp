#include "tessera/node/background_jobs.h"

#include <fmt/format.h>

#include "local_checkpoint.h"
#include "tessera/base/log.h"
#include "tessera/core/stage_layout.h"
#include "tessera/kernels/merge.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/objects.h"

namespace tessera::node {

using core::miner_event::BaseAdopted;
using core::miner_event::BasePrepared;
using core::miner_event::DeltaUploaded;
using core::miner_event::LocalStateUploaded;
using core::miner_event::ShardReduced;
using core::miner_event::StateFetched;
using core::miner_event::StatePutOut;

void BackgroundJobs::run(core::BackgroundJob& job) {
  std::visit([this](auto& j) { work(j); }, job);
}

Status BackgroundJobs::fetch(const core::miner_effect::FetchState& job, StateFetched* done) {
  const core::Assignment& assignment = job.assignment;
  stage_ = assignment.stage;
  epoch_ = assignment.epoch;
  snapshot_.reset();
  snapshot_target_ = 0;
  base_.reset();
  const uint64_t values = core::stage_value_count(spec_, assignment.stage);
  if (!assignment.state.is_zero()) {
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes,
                             get_object(blobs_, assignment.state, 2 * values * sizeof(float)));
    const std::string_view view = bytes;
    base_ = std::make_shared<const std::vector<float>>(values_of(view.substr(0, view.size() / 2)));
    momentum_ = values_of(view.substr(view.size() / 2));
    done->masters = base_;
    done->state = assignment.state;
  }
  if (!assignment.local_state.is_zero()) {
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, get_object(blobs_, assignment.local_state, 0));
    TESSERA_ASSIGN_OR_RETURN(core::LocalState state, decode_local_state(bytes));
    if (state.masters.size() != values) {
      return data_loss("the miner's own state has {} values, its stage has {}", state.masters.size(), values);
    }
    done->local_state = std::make_shared<const core::LocalState>(std::move(state));
  }
  if (job.recover && !directory_.empty()) {
    Recovery found = recover_local_state(directory_, {run_id_, assignment, base_, values});
    done->recovered = std::move(found.about);
    if (found.base) {  // of the seed: what the process before has written of it
      base_ = done->masters = std::move(found.base);
      momentum_ = std::move(found.momentum);
      done->state = found.base_name;
    }
    if (found.state) done->local_state = std::move(found.state);
  }
  if (base_) write_copy();
  return ok_status();
}

void BackgroundJobs::work(core::miner_effect::FetchState& job) {
  StateFetched done;
  const Status status = fetch(job, &done);
  done.ok = status.ok();
  done.why = message_of(status);
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::AdoptBase& job) {
  base_ = job.masters;
  momentum_.assign(base_->size(), 0.0f);
  write_copy();
  const StatusOr<Digest> state = name_stage_state(*base_, momentum_);
  TESSERA_CHECK(state.ok());
  post_(BaseAdopted{*state});
}

StatusOr<Digest> BackgroundJobs::upload_delta(const std::vector<float>& snapshot) {
  std::vector<float> delta(snapshot.size());
  for (size_t i = 0; i < delta.size(); ++i) delta[i] = (*base_)[i] - snapshot[i];
  return put_object(blobs_, bytes_of(delta), spec_.merge.block_values * static_cast<uint32_t>(sizeof(float)));
}

void BackgroundJobs::work(core::miner_effect::UploadDelta& job) {
  snapshot_ = job.snapshot;
  snapshot_target_ = job.target;
  const StatusOr<Digest> object = upload_delta(*job.snapshot);
  DeltaUploaded done;
  done.commit.target = job.target;
  done.commit.snapshot_step = job.snapshot_step;
  done.commit.snapshot_version = job.snapshot_version;
  done.ok = object.ok();
  if (object.ok()) {
    done.commit.object = *object;
  } else {
    done.why = message_of(object.status());
  }
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::ReduceShard& job) {
  const StatusOr<Digest> object =
      reduce_shard(blobs_, {.uploads = job.uploads,
                            .first_block = job.task.first_block,
                            .block_count = job.task.block_count,
                            .block_values = spec_.merge.block_values,
                            .stage_values = core::stage_value_count(spec_, stage_)});
  ShardReduced done;
  done.commit.target = job.target;
  done.commit.shard = job.task.shard;
  done.ok = object.ok();
  if (object.ok()) {
    done.commit.object = *object;
  } else {
    done.why = message_of(object.status());
  }
  post_(std::move(done));
}

Status BackgroundJobs::prepare(const core::miner_effect::PrepareBase& job, BasePrepared* done) {
  if (job.target != epoch_ + 1) return failed_precondition("base is at epoch {}", epoch_);
  const uint64_t values = base_->size();
  const uint64_t block = spec_.merge.block_values;
  std::vector<float> delta(values);
  uint64_t covered = 0;
  for (const core::ShardResult& result : job.results) {
    const uint64_t first = result.first_block * block;
    const uint64_t end = std::min(values, (result.first_block + result.block_count) * block);
    if (first != covered || end <= first) return data_loss("the merge's shards do not tile the stage");
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes,
                             get_object(blobs_, result.object, (end - first) * sizeof(float)));
    std::memcpy(delta.data() + first, bytes.data(), bytes.size());
    covered = end;
  }
  if (covered != values) return data_loss("the merge's shards cover {} of {} values", covered, values);
  const core::Values old_base = base_;
  std::vector<float> base = *base_;
  kernels::outer_step_cpu(base.data(), momentum_.data(), delta.data(), values,
                          static_cast<float>(job.outer_learning_rate),
                          static_cast<float>(job.outer_momentum));
  base_ = std::make_shared<const std::vector<float>>(std::move(base));
  epoch_ = job.target;
  done->base = base_;
  done->reference = job.participant && snapshot_target_ == job.target ? snapshot_ : old_base;
  snapshot_.reset();
  TESSERA_ASSIGN_OR_RETURN(done->state, name_stage_state(*base_, momentum_));
  write_copy();
  return ok_status();
}

void BackgroundJobs::work(core::miner_effect::PrepareBase& job) {
  BasePrepared done;
  done.target = job.target;
  const Status status = prepare(job, &done);
  done.ok = status.ok();
  done.why = message_of(status);
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::PutOutState& job) {
  StatePutOut done;
  done.epoch = job.epoch;
  StatusOr<Digest> state = failed_precondition("base is at epoch {}", epoch_);
  if (job.epoch == epoch_ && base_) state = put_object(blobs_, encode_stage_state(*base_, momentum_));
  done.ok = state.ok();
  if (state.ok()) {
    done.state = *state;
  } else {
    done.why = message_of(state.status());
  }
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::UploadLocalState& job) {
  const StatusOr<Digest> object = put_object(blobs_, encode_local_state(*job.state));
  LocalStateUploaded done;
  done.id = job.id;
  done.ok = object.ok();
  if (object.ok()) {
    done.object = *object;
  } else {
    done.why = message_of(object.status());
  }
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::SaveLocalState& job) {
  const Status status = directory_.empty() ? ok_status() : save_local_checkpoint(directory_, job.about, *job.state);
  post_(core::miner_event::LocalStateSaved{job.about.steps, status.ok(), message_of(status)});
}

void BackgroundJobs::write_copy() {
  if (directory_.empty()) return;
  const Status status = write_stage_copy(directory_, stage_, epoch_, *base_, momentum_);
  if (!status.ok()) spdlog::warn("the copy of the base could not be written: {}", message_of(status));
}

}  // namespace tessera::node
