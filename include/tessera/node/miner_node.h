// The miner's threads around core::Miner.
//   control (run()'s caller)   owns the state machine; the only one to call links and to answer peers
//   compute                    owns the engine
//   background                 owns base and outer momentum; transfers of merges and checkpoints
//   data                       reads token shards
// They share bounded queues and immutable values, nothing else. Link callbacks only enqueue.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"
#include "tessera/kernels/merge_reducer.h"
#include "tessera/ports/links.h"
#include "tessera/ports/stage_engine.h"
#include "tessera/ports/token_source.h"

namespace tessera::node {

struct MinerOptions {
  core::Registration registration;   // node, incarnation, address, device, ...
  const KeyPair* key = nullptr;
  std::string directory;             // for the copy of the base that this replica holds; empty: none is written
  // Builds the engine of a stage, on the compute thread.
  std::function<StatusOr<std::unique_ptr<ports::StageEngine>>(const core::RunSpec&, StageIndex)> make_engine;
  kernels::MergeReducer* reducer = nullptr;  // of the merge's shards, outliving the node; null: the CPU
  // Called on the control thread with every accepted registration's run id, before frames come or go. May be empty.
  std::function<void(const std::string&)> joined;
};

// The links outlive the node.
struct MinerLinks {
  ports::OrchestratorLink* orchestrator = nullptr;
  ports::PeerLink* peers = nullptr;
  ports::BlobLink* blobs = nullptr;
  ports::TokenSource* tokens = nullptr;
  ports::DonorLinks* donors = nullptr;  // may be null: then a state is fetched from the blob store alone
};

class MinerNode final : public ports::PeerHandler {
 public:
  MinerNode(MinerOptions options, MinerLinks links);
  ~MinerNode() override;

  // Where peers reach this miner; before run(), for who learns it only after the node exists.
  void set_address(std::string address);

  // Registers (waiting for the orchestrator as long as it takes), works until the run is over or `stop` is true, drains,
  // and returns why it ended. An error status is one a restart may mend.
  StatusOr<std::string> run(const std::atomic<bool>& stop);

  void on_frame(const ports::Caller& caller, std::string frame, std::function<void(core::Admission)> done) override;
  void on_probe(const ports::Caller& caller, std::function<void(StatusOr<core::PeerHealth>)> done) override;
  StatusOr<std::string> donate(const Digest& name) override;

 private:
  class Shell;
  std::unique_ptr<Shell> shell_;
};

}  // namespace tessera::node
