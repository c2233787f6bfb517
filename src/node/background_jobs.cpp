#include "tessera/node/background_jobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "local_checkpoint.h"
#include "merge_workers.h"
#include "tessera/base/crypto.h"
#include "tessera/base/large_vector.h"
#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/stage_layout.h"
#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/audit_store.h"
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

namespace {

// Of a merge's phase: so long may nothing come of the uploads before a reduction ends, to be begun again if it is still asked
// for.
constexpr TimeMs kIdleShare = 4;
constexpr size_t kStoreChunks = 4;  // of a state, in one call to the blob store

}  // namespace

void BackgroundJobs::run(core::BackgroundJob& job) {
  std::visit([this](auto& j) { work(j); }, job);
}

Status BackgroundJobs::fetch(const core::miner_effect::FetchState& job, StateFetched* done) {
  const core::Assignment& assignment = job.assignment;
  stop_transfers();
  withdraw();
  stage_ = assignment.stage;
  epoch_ = assignment.epoch;
  snapshot_.reset();
  snapshot_target_ = 0;
  base_.reset();
  residual_.clear();
  recovered_.reset();
  merge_blobs_.clear();
  const uint64_t values = core::stage_value_count(spec_, assignment.stage);
  if (!assignment.state.is_zero()) {
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, fetch_state(assignment, values));
    const std::string_view view = bytes;
    base_ = std::make_shared<const std::vector<float>>(values_of(view.substr(0, view.size() / 2)));
    momentum_ = values_of(view.substr(view.size() / 2));
    done->masters = base_;
    done->state = assignment.state;
  }
  if (!assignment.local_state.is_zero()) {
    TESSERA_ASSIGN_OR_RETURN(core::LocalState state, get_local_state(blobs_, assignment.local_state, values));
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
    if (found.state) {
      done->local_state = std::move(found.state);
      recovered_ = std::shared_ptr<const std::vector<float>>(done->local_state, &done->local_state->masters);
    }
  }
  if (done->local_state) residual_ = done->local_state->residual;
  if (!base_) return ok_status();
  write_copy();
  return offer().status();
}

// From the blob store and from replicas that hold it. One that has died, or holds another by now, costs a chunk.
StatusOr<std::string> BackgroundJobs::fetch_state(const core::Assignment& assignment, uint64_t values) {
  std::vector<ObjectSource> sources = {{&blobs_, kStoreChunks}};
  std::vector<std::unique_ptr<ports::BlobLink>> donors;
  if (donations_.from != nullptr) {
    for (const core::Peer& donor : assignment.donors) donors.push_back(donations_.from->connect(donor));
  }
  for (const auto& donor : donors) sources.push_back({donor.get(), 1});
  TESSERA_ASSIGN_OR_RETURN(std::string bytes, fetch_.run(assignment.state, 2 * values * sizeof(float), sources, overlap_));
  if (!donors.empty()) {
    spdlog::info("the stage's state came from the blob store ({} chunks) and {} replicas ({})", fetch_.chunks_from().front(),
                 donors.size(), std::accumulate(fetch_.chunks_from().begin() + 1, fetch_.chunks_from().end(), uint64_t{0}));
  }
  return bytes;
}

void BackgroundJobs::withdraw() {
  if (donations_.to != nullptr) donations_.to->withdraw();
}

StatusOr<Digest> BackgroundJobs::offer() {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, list_stage_state(*base_, momentum_));
  if (donations_.to != nullptr) donations_.to->offer(manifest, *base_, momentum_);
  return manifest.digest();
}

void BackgroundJobs::work(core::miner_effect::FetchState& job) {
  StateFetched done;
  const Status status = fetch(job, &done);
  done.ok = status.ok();
  done.why = message_of(status);
  post_(std::move(done));
}

void BackgroundJobs::work(core::miner_effect::AdoptBase& job) {
  withdraw();
  base_ = job.masters;
  momentum_.assign(base_->size(), 0.0f);
  write_copy();
  const StatusOr<Digest> state = offer();
  TESSERA_CHECK(state.ok());
  post_(BaseAdopted{*state});
}

void BackgroundJobs::announce(const core::BackgroundJob& job) {
  if (const auto* sealed = std::get_if<core::miner_effect::FetchSealed>(&job)) {
    // At once: the queue's thread may be in a reduction.
    std::lock_guard lock(wanted_mutex_);
    if (prefetch_ && prefetch_target_ == sealed->target) prefetch_->add(sealed->results);
    return;
  }
  const auto* reduction = std::get_if<core::miner_effect::ReduceShards>(&job);
  const bool ends_merge = std::holds_alternative<core::miner_effect::FetchState>(job) ||
                          std::holds_alternative<core::miner_effect::UploadDelta>(job) ||
                          std::holds_alternative<core::miner_effect::PrepareBase>(job);
  if (reduction == nullptr && !ends_merge) return;
  std::lock_guard lock(wanted_mutex_);
  // More shards of the same manifest make none of the others pointless.
  const Digest manifest = reduction == nullptr ? Digest{} : digest_of(encode(reduction->uploads));
  if (std::exchange(wanted_manifest_, manifest) != manifest) ++reductions_wanted_;
  if (!ends_merge) return;
  upload_is_over_ = true;
  if (prefetch_) prefetch_->close();
}

void BackgroundJobs::stop_transfers() {
  upload_is_over_ = true;
  std::unique_ptr<ResultPrefetch> prefetch;
  {
    std::lock_guard lock(wanted_mutex_);
    prefetch = std::move(prefetch_);
  }
  prefetch.reset();
  if (uploader_.joinable()) uploader_.join();
}

void BackgroundJobs::work(core::miner_effect::UploadDelta& job) {
  stop_transfers();
  snapshot_ = job.snapshot;
  snapshot_target_ = job.target;
  const uint64_t values = core::merged_values(spec_.merge, base_->size());
  const uint64_t wire = kernels::merge_run_bytes(spec_.merge.upload_format, values, spec_.merge.block_values);
  merge_blobs_.begin(3 * wire);  // the upload, its own results, and others' that are fetched before they can be read
  if (overlap_) {
    std::lock_guard lock(wanted_mutex_);
    prefetch_ = std::make_unique<ResultPrefetch>(merge_blobs_, spec_.merge, base_->size());
    prefetch_target_ = job.target;
  }
  StatusOr<DeltaUpload> upload = commit_delta(merge_blobs_, spec_.merge, *base_, *job.snapshot, residual_,
                                              overlap_ ? kMergeWorkers : 1, job.moments.get());
  DeltaUploaded done;
  done.commit.target = job.target;
  done.commit.snapshot_step = job.snapshot_step;
  done.commit.snapshot_version = job.snapshot_version;
  done.commit.again = job.again;
  done.ok = upload.ok();
  if (!upload.ok()) {
    done.why = message_of(upload.status());
    return post_(std::move(done));
  }
  done.commit.object = upload->object;
  snapshot_residual_ = std::move(upload->residual);
  upload_is_over_ = false;
  if (!overlap_) return store(std::move(done), upload->manifest, job.rounds);
  post_(done);
  uploader_ = std::jthread([this, done, rounds = job.rounds, manifest = std::move(upload->manifest)] {
    name_thread("upload");
    store(done, manifest, rounds);
  });
}

void BackgroundJobs::store(DeltaUploaded done, const core::ObjectManifest& manifest, uint32_t rounds) {
  const Status status =
      store_delta(merge_blobs_, manifest, rounds, overlap_ ? kMergeTransfers : 1, [this] { return upload_is_over_.load(); });
  if (absl::IsCancelled(status)) return;
  done.ok = done.commit.whole = status.ok();
  done.why = message_of(status);
  post_(std::move(done));
}

ReduceInputs BackgroundJobs::reduction_of(Epoch target, const std::vector<core::UploadRef>& uploads) const {
  return {.uploads = uploads,
          .stage_values = core::stage_value_count(spec_, stage_),
          .merge = spec_.merge,
          .rounding_key = core::merge_rounding_key(run_id_, stage_, target),
          .overlap = overlap_,
          .device = reducer_};
}

// What announce() did not take: without other threads a result is fetched when it is needed.
void BackgroundJobs::work(core::miner_effect::FetchSealed&) {}

void BackgroundJobs::work(core::miner_effect::ReduceShards& job) {
  ReduceInputs inputs = reduction_of(job.target, job.uploads);
  inputs.rounds = job.rounds;
  if (overlap_ && !job.uploads_whole) {
    const TimeMs longest = std::max<TimeMs>(1, spec_.timeouts.merge_phase_ms / kIdleShare);
    const uint64_t wanted = reductions_wanted_;
    const bool is_wanted = [&] {
      std::lock_guard lock(wanted_mutex_);
      return wanted_manifest_ == digest_of(encode(job.uploads));
    }();
    inputs.keep_waiting = [this, wanted, is_wanted, longest](int64_t idle_ms) {
      return is_wanted && reductions_wanted_ == wanted && idle_ms < longest;
    };
  }
  reduce_shards(merge_blobs_, inputs, job.tasks, [&](const core::ShardTask& task, StatusOr<Reduction> reduction) {
    ShardReduced done;
    done.commit.target = job.target;
    done.commit.shard = task.shard;
    done.ok = reduction.ok();
    if (reduction.ok()) {
      done.commit.result = reduction->result;
      done.commit.object = reduction->object;
      done.commit.measures = std::move(reduction->measures);
    } else if (const std::vector<Digest> unreadable = job.uploads_whole ? unreadable_uploads(merge_blobs_, inputs, task)
                                                                         : std::vector<Digest>();
               !unreadable.empty()) {
      done.ok = true;
      done.commit.unavailable = unreadable.front();
    } else {
      done.why = message_of(reduction.status());
    }
    post_(std::move(done));
  });
}

Status BackgroundJobs::prepare(const core::miner_effect::PrepareBase& job, BasePrepared* done) {
  if (job.target != epoch_ + 1) return failed_precondition("base is at epoch {}", epoch_);
  const uint64_t values = base_->size();
  auto room = large_vector<float>(core::merged_values(spec_.merge, values));
  stop_transfers();
  // Both owners may have stored something else than they committed: whoever needs the shard makes it itself. The name of what
  // it stores is as good as any: it is nobody's secret any more.
  const auto remake = [&](const core::ShardResult& shard) -> StatusOr<core::ResultCopy> {
    const Digest token = digest_of(shard.result.view());
    TESSERA_ASSIGN_OR_RETURN(const Reduction made,
                             reduce_shard(merge_blobs_, reduction_of(job.target, job.uploads),
                                          {.first_block = shard.first_block, .block_count = shard.block_count, .token = token}));
    return core::ResultCopy{made.object, token};
  };
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> merged,
                           fetch_mean(merge_blobs_, spec_.merge, values, job.results, remake, overlap_ ? kMergeTransfers : 1,
                                      &done->unreadable, std::move(room)));
  if (core::merge_planes(spec_.merge) > 1) {
    done->moments = std::make_shared<const core::Moments>(merged_moments(spec_, core::stage_layout(spec_, stage_), merged));
  }
  withdraw();
  const core::Values old_base = base_;
  std::vector<float> base = large_copy(*base_);
  kernels::outer_step_cpu(base.data(), momentum_.data(), merged.data(), values,
                          static_cast<float>(job.outer_learning_rate),
                          static_cast<float>(job.outer_momentum));
  base_ = std::make_shared<const std::vector<float>>(std::move(base));
  epoch_ = job.target;
  done->base = base_;
  const bool took_part = job.participant && snapshot_target_ == job.target;
  if (took_part) residual_ = std::move(snapshot_residual_);
  core::Values reference = took_part ? snapshot_ : old_base;
  if (job.participant && !took_part && recovered_) {
    // A process before this one gave what was recovered to the merge, its residual too: only the work since is carried over.
    reference = recovered_;
    residual_.clear();
  }
  recovered_.reset();
  if (!job.drop_carry) done->reference = std::move(reference);
  snapshot_residual_.clear();
  snapshot_.reset();
  merge_blobs_.clear();
  TESSERA_ASSIGN_OR_RETURN(done->state, offer());
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
  core::LocalState state = *job.state;
  state.residual = residual_;
  const StatusOr<Digest> object = put_local_state(blobs_, state);
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
  Status status = ok_status();
  if (!directory_.empty()) {
    core::LocalState state = *job.state;
    state.residual = residual_;
    status = save_local_checkpoint(directory_, job.about, state);
  }
  post_(core::miner_event::LocalStateSaved{job.about.steps, status.ok(), message_of(status)});
}

void BackgroundJobs::work(core::miner_effect::StoreSegment& job) {
  post_(core::miner_event::SegmentStored{store_segment(blobs_, job, {})});
}

void BackgroundJobs::write_copy() {
  if (directory_.empty()) return;
  const Status status = write_stage_copy(directory_, stage_, epoch_, *base_, momentum_);
  if (!status.ok()) spdlog::warn("the copy of the base could not be written: {}", message_of(status));
}

}  // namespace tessera::node
