// The orchestrator's threads around OrchestratorControl.
//   control (run()'s caller)   owns it: the state machine and the journal:
//                              reports -> events -> step -> one journal transaction for the batch -> answers and effects
//   background                 recomputes shards, writes checkpoints
// Nothing is answered before the journal has it. Handler calls (the server's threads) only enqueue.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"
#include "tessera/node/orchestrator_control.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/journal.h"
#include "tessera/ports/links.h"

namespace tessera::node {

// Who may store how much in the blob store. Called on the control thread; an empty function is not called.
struct BlobAccounts {
  std::function<void(const NodeId&, const BlobShare&)> open = {};
  std::function<void(const NodeId&, uint64_t bytes)> credit = {};
  std::function<void(const NodeId&)> close = {};
};

struct OrchestratorPorts {
  const KeyPair* key = nullptr;  // the orchestrator's own
  ports::Journal* journal = nullptr;
  ports::BlobLink* blobs = nullptr;
  ports::CheckpointStore* checkpoints = nullptr;
  OrchestratorJobs::SweepBlobs sweep_blobs = {};
  BlobAccounts blob_accounts = {};
};

class OrchestratorNode final : public ports::OrchestratorHandler {
 public:
  // Replays the journal (or begins a new run in an empty one). Fails if the journal is of another run specification and
  // no checkpoint is given, saying which sections differ.
  static StatusOr<std::unique_ptr<OrchestratorNode>> open(OrchestratorOptions options, OrchestratorPorts ports);
  ~OrchestratorNode() override;

  const std::string& run_id() const;

  // Serves until `stop` is true (then the run is drained and checkpointed first; a second stop request, `abandon`, ends at
  // once) or the run is over and exit_when_over is set. Returns why.
  StatusOr<std::string> run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon);

  void on_register(const ports::Caller& caller, core::Registration registration,
                   std::function<void(StatusOr<core::RegisterAnswer>)> done) override;
  void on_sync(const ports::Caller& caller, core::SyncRequest request,
               std::function<void(StatusOr<core::SyncAnswer>)> done) override;
  void on_validate(const ports::Caller& caller, core::ValidatorReport report,
                   std::function<void(StatusOr<core::ValidatorOrders>)> done) override;
  void on_query(const ports::Caller& caller, std::string topic, std::string argument,
                std::function<void(StatusOr<std::string>)> done) override;
  void on_command(const ports::Caller& caller, std::string command, std::string argument,
                  std::function<void(StatusOr<std::string>)> done) override;

 private:
  class Shell;
  explicit OrchestratorNode(std::unique_ptr<Shell> shell);
  std::unique_ptr<Shell> shell_;
};

}  // namespace tessera::node
