// A miner that only reports and obeys: it computes nothing, and does what the test tells it. Names
// of states, uploads and shards are hashes of what they would be made from, so that two miners
// agree exactly when real ones would.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "support/orchestrator_world.h"

namespace tessera::test {

Digest seed_state(StageIndex stage);
Digest state_after(const Digest& before, const std::vector<core::ShardResult>& results);
Digest reduced(const std::vector<core::UploadRef>& uploads, const core::ShardTask& task);
// An honest owner's word on the shard.
core::ShardCommit reduction(Epoch target, const std::vector<core::UploadRef>& uploads, const core::ShardTask& task);

class ScriptedMiner {
 public:
  ScriptedMiner(OrchestratorWorld& world, uint64_t number,
                std::optional<StageIndex> stage = std::nullopt);

  struct Habits {
    bool loads = true;
    bool uploads = true;
    bool stores = true;         // else its upload stays on its way
    bool commits_first = false;  // its upload is whole only a report later
    bool reduces = true;
    bool lies = false;  // commits a wrong reduction
    std::optional<size_t> cannot_read = std::nullopt;  // says so of this upload of every manifest
    bool applies = true;
    bool checks = false;  // applies no result that is not the uploads' reduction, and says so
    bool publishes = true;
    bool checkpoints = true;
    bool leases = true;
  } habits;

  // One report; then it does what the answer says. The answer stays readable.
  const core::SyncAnswer& sync();
  // A new process of the same miner.
  void restart();
  // Adds a receipt for its next report; the optimizer steps when it is due. Its neighbours are the miners whose numbers are 100
  // less and 100 more, as in ScriptedSwarm.
  void receipt(MicrobatchId microbatch, uint32_t attempt = 0, bool accumulated = true);
  // The one that it made last, to be changed before the report.
  core::Receipt& last_receipt() { return receipts_.back(); }
  // A report with nothing done in between, to send by hand.
  core::SyncRequest report() const;
  core::RegisterAnswer join();
  core::Registration& registration() { return registration_; }

  MinerIndex index() const { return index_; }
  const NodeId& node() const { return registration_.node; }
  const core::SyncAnswer& answer() const { return answer_; }
  const core::MinerRecord& record() const { return world_.miner(index_); }
  uint64_t incarnation() const { return registration_.incarnation; }
  Epoch epoch() const { return epoch_; }
  const Digest& state() const { return state_; }
  uint64_t local_steps() const { return local_steps_; }

  std::vector<core::Lease> leases;  // taken and not used yet
  std::optional<core::CheckpointCommit> checkpoint;
  std::optional<Digest> spoiled_state;  // reported instead of what it should hold
  bool draining = false;
  bool ready = false;
  bool told_to_leave = false;
  bool told_to_move = false;    // to another stage: it drains, and restart() joins again
  float microbatch_ms = 0;      // that its receipts say it took

 private:
  MinerIndex neighbour(int stages) const;
  void obey();
  void load(const core::Assignment& assignment);
  void take_part(const core::MergeDirective& merge);

  OrchestratorWorld& world_;
  core::Registration registration_;
  MinerIndex index_ = kNoMiner;
  core::SyncAnswer answer_;

  StageIndex stage_ = 0;
  Epoch epoch_ = 0;
  Digest state_;
  std::vector<core::Receipt> receipts_;
  uint64_t next_sequence_ = 1;
  uint64_t local_steps_ = 0;
  uint32_t accumulated_ = 0;
  uint64_t lease_request_ = 1;
  std::optional<core::UploadCommit> upload_;
  std::vector<core::ShardCommit> shards_;
  std::vector<core::UnreadableResult> unreadable_;
  std::optional<core::MergeApplied> applied_;
  std::optional<Digest> published_;
};

}  // namespace tessera::test
