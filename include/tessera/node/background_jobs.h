// What a miner's background thread does, without the thread: the transfers of merges and checkpoints. Owns base and outer
// momentum of the stage, the replica's share of what the stage's miners have in common. Each job blocks until it is done
// and is answered with an event; an upload is answered when it is committed, and again when it is whole.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/miner_events.h"
#include "tessera/core/run_spec.h"
#include "tessera/node/donated_state.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/object_fetch.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Both outlive the jobs, or are null.
struct Donations {
  ports::DonorLinks* from = nullptr;  // other replicas
  DonatedState* to = nullptr;         // what this one gives away
};

class BackgroundJobs {
 public:
  // `directory`: this miner's folder; empty: nothing is written or recovered. `overlap`: transfers of a reduction may go on
  // in another thread meanwhile; `blobs` must allow it. `reducer`: as ReduceInputs::device.
  BackgroundJobs(const core::RunSpec& spec, ports::BlobLink& blobs, std::string directory, std::string run_id,
                 std::function<void(core::MinerEvent)> post, bool overlap = false, Donations donations = {},
                 kernels::MergeReducer* reducer = nullptr)
      : spec_(spec),
        blobs_(blobs),
        merge_blobs_(blobs),
        overlap_(overlap),
        donations_(donations),
        reducer_(reducer),
        fetch_(directory),
        directory_(std::move(directory)),
        run_id_(std::move(run_id)),
        post_(std::move(post)) {}
  ~BackgroundJobs() {
    stop_transfers();
    withdraw();
  }

  void run(core::BackgroundJob& job);
  // A job that will be run when those before it are done. What it makes pointless stops waiting. Any thread.
  void announce(const core::BackgroundJob& job);

  Epoch epoch() const { return epoch_; }
  const core::Values& base() const { return base_; }
  const std::vector<float>& momentum() const { return momentum_; }

 private:
  void work(core::miner_effect::FetchState& job);
  void work(core::miner_effect::AdoptBase& job);
  void work(core::miner_effect::UploadDelta& job);
  void work(core::miner_effect::ReduceShards& job);
  void work(core::miner_effect::FetchSealed& job);
  void work(core::miner_effect::PrepareBase& job);
  void work(core::miner_effect::PutOutState& job);
  void work(core::miner_effect::UploadLocalState& job);
  void work(core::miner_effect::SaveLocalState& job);
  void work(core::miner_effect::StoreSegment& job);
  Status fetch(const core::miner_effect::FetchState& job, core::miner_event::StateFetched* done);
  StatusOr<std::string> fetch_state(const core::Assignment& assignment, uint64_t values);
  void withdraw();
  // Base and momentum are as they will stay for a while. Their object's name.
  StatusOr<Digest> offer();
  ReduceInputs reduction_of(Epoch target, const std::vector<core::UploadRef>& uploads) const;
  void store(core::miner_event::DeltaUploaded done, const core::ObjectManifest& manifest, uint32_t rounds);
  // Ends what still goes up and comes down for a merge that is over.
  void stop_transfers();
  Status prepare(const core::miner_effect::PrepareBase& job, core::miner_event::BasePrepared* done);
  // The base this replica holds, as a file that others can read and compare.
  void write_copy();

  const core::RunSpec spec_;
  ports::BlobLink& blobs_;
  KeptBlobs merge_blobs_;  // the running merge's transfers go through it
  const bool overlap_;
  const Donations donations_;
  kernels::MergeReducer* const reducer_;
  ObjectFetch fetch_;  // keeps what came of a state, for the next try and the next process
  const std::string directory_;
  const std::string run_id_;
  const std::function<void(core::MinerEvent)> post_;  // from any thread if `overlap`
  // Counts the jobs that make earlier reductions, and the upload under way, pointless.
  std::atomic<uint64_t> reductions_wanted_{0};
  std::mutex wanted_mutex_;
  Digest wanted_manifest_;  // of the reductions announced last
  std::atomic<bool> upload_is_over_{false};
  StageIndex stage_ = 0;
  Epoch epoch_ = 0;
  core::Values base_;
  std::vector<float> momentum_;
  Epoch snapshot_target_ = 0;
  core::Values snapshot_;
  std::vector<float> residual_;           // what the uploads so far left out; empty: nothing
  std::vector<float> snapshot_residual_;  // what it becomes if the snapshot's upload is in the manifest
  core::Values recovered_;  // masters of a process before this one, until the next merge
  std::jthread uploader_;                 // of the blocks of what is committed
  std::unique_ptr<ResultPrefetch> prefetch_;  // of the merge to prefetch_target_; under wanted_mutex_, like the next
  Epoch prefetch_target_ = 0;
};

}  // namespace tessera::node
