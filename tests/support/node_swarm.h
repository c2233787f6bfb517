// Real orchestrator and miner nodes, with all their threads, in one process: only the network, the
// disk and the model are made up.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/temporary_folder.h"
#include "support/memory_ports.h"
#include "support/process_network.h"
#include "support/small_run.h"
#include "tessera/node/miner_node.h"
#include "tessera/node/orchestrator_node.h"

namespace tessera::test {

// A run for real threads: short intervals, and time enough for a busy machine.
core::RunSpec node_spec(uint32_t stages, uint32_t miners_per_stage, uint64_t steps);

class NodeSwarm {
 public:
  explicit NodeSwarm(const core::RunSpec& spec);
  ~NodeSwarm();

  Status open_orchestrator(std::optional<ports::Checkpoint> resume_from = std::nullopt);
  // One that waits for a run to be created; the text of an order to do so is what `prepare` gets.
  Status open_orchestrator_without_run(std::function<StatusOr<node::NewRun>(const std::string&)> prepare);
  // Ends it at once, as a crash would: nothing is drained or written.
  void crash_orchestrator();
  void request_stop() { stop_ = true; }
  // Why run() ended; waits for it.
  StatusOr<std::string> orchestrator_result();
  std::string query(const std::string& topic);
  StatusOr<std::string> command(const KeyPair& key, const std::string& what,
                                const std::string& argument = "");

  // Starts a miner and returns its number. The same number is the same key, in another process.
  size_t start_miner(std::optional<StageIndex> stage, ports::BlobLink* own_blobs = nullptr);
  void restart_miner(size_t number);
  // All of it is gone between one moment and the next.
  void kill_miner(size_t number);
  // In an orderly way.
  void stop_miner(size_t number) { miners_[number]->stop = true; }
  // Why its run() ended; waits for it.
  StatusOr<std::string> miner_result(size_t number);
  void start_all();

  // What every engine made from now on is wrapped in. May be empty.
  std::function<std::unique_ptr<ports::StageEngine>(std::unique_ptr<ports::StageEngine>, const core::RunSpec&)> wrap_engine;
  ports::OrchestratorHandler& orchestrator() { return *orchestrator_; }

  // The base and momentum that a miner wrote to its folder; empty if none.
  std::string stage_state(size_t number) const;
  std::string folder(size_t number) const { return miners_[number]->folder->path(); }
  NodeId node(size_t number) const { return miners_[number]->key.id(); }
  std::string address(size_t number) const { return "miner-" + std::to_string(number) + ":1"; }
  size_t miner_count() const { return miners_.size(); }

  const core::RunSpec spec;
  MemoryBlobs blobs;
  MemoryCheckpoints checkpoints;
  std::unique_ptr<MemoryJournal> journal = std::make_unique<MemoryJournal>();
  ProcessNetwork network;
  const KeyPair orchestrator_key = KeyPair::from_seed(std::string(32, 'o'));
  const KeyPair validator = KeyPair::from_seed(std::string(32, 'v'));
  const KeyPair admin = KeyPair::from_seed(std::string(32, 'a'));

 private:
  struct RunningMiner {
    KeyPair key = KeyPair::generate();
    std::optional<StageIndex> stage;
    ports::BlobLink* blobs = nullptr;
    std::unique_ptr<TemporaryFolder> folder;
    std::unique_ptr<ProcessNetwork::MinerLink> orchestrator;
    std::unique_ptr<ports::PeerLink> peers;
    std::unique_ptr<ports::DonorLinks> donors;
    std::unique_ptr<CountingTokens> tokens;
    std::unique_ptr<node::MinerNode> node;
    std::atomic<bool> stop{false};
    std::optional<StatusOr<std::string>> result;
    std::jthread thread;
  };
  Status open(node::OrchestratorOptions options);
  void begin(size_t number);
  void end(size_t number);

  std::unique_ptr<node::OrchestratorNode> orchestrator_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> abandon_{false};
  std::optional<StatusOr<std::string>> orchestrator_result_;
  std::jthread orchestrator_thread_;
  std::vector<std::unique_ptr<RunningMiner>> miners_;
};

}  // namespace tessera::test
