// The background thread of a miner: transfers of merges and checkpoints. Owns base and outer momentum of the stage, the
// replica's share of what the stage's miners have in common.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <thread>

#include "tessera/base/bounded_queue.h"
#include "tessera/core/miner.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/links.h"

namespace tessera::node {

class BackgroundWorker {
 public:
  // `directory`: this miner's folder; empty: nothing is written or recovered.
  BackgroundWorker(const core::RunSpec& spec, ports::BlobLink& blobs, std::string directory, std::string run_id,
                   std::function<void(core::MinerEvent)> post);
  ~BackgroundWorker();

  // Any thread.
  void run(core::BackgroundJob job);

 private:
  void loop();
  void work(core::miner_effect::FetchState& job);
  void work(core::miner_effect::AdoptBase& job);
  void work(core::miner_effect::UploadDelta& job);
  void work(core::miner_effect::ReduceShard& job);
  void work(core::miner_effect::PrepareBase& job);
  void work(core::miner_effect::PutOutState& job);
  void work(core::miner_effect::UploadLocalState& job);
  void work(core::miner_effect::SaveLocalState& job);
  Status fetch(const core::miner_effect::FetchState& job, core::miner_event::StateFetched* done);
  StatusOr<Digest> upload_delta(const std::vector<float>& snapshot);
  Status prepare(const core::miner_effect::PrepareBase& job, core::miner_event::BasePrepared* done);
  // The base this replica holds, as a file that others can read and compare.
  void write_copy();

  const core::RunSpec spec_;
  ports::BlobLink& blobs_;
  const std::string directory_;
  const std::string run_id_;
  const std::function<void(core::MinerEvent)> post_;
  BoundedQueue<core::BackgroundJob> jobs_{65536};

  StageIndex stage_ = 0;
  Epoch epoch_ = 0;
  core::Values base_;
  std::vector<float> momentum_;
  Epoch snapshot_target_ = 0;
  core::Values snapshot_;
  std::jthread thread_;
};

}  // namespace tessera::node
