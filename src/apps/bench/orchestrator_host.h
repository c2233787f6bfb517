// The orchestrator that tessera-bench loads: the real control loop, checks of receipts and journal on disk, without gRPC, blobs
// and checkpoints.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "apps/bench/orchestrator_load.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/node/orchestrator_node.h"
#include "tessera/store/journal.h"

namespace tessera::apps {

struct HostOptions {
  LoadOptions load;  // the run is made for it
  int core = -1;     // of the orchestrator's threads; negative: any
  uint64_t snapshot_events = node::OrchestratorOptions().snapshot_events;
  std::string directory;  // of the journal
};

// Only `core`, or, for its counterpart, every other one. Nothing where a core is not asked for. Threads begun later inherit it.
void pin_this_thread(int core, bool others);

StatusOr<std::unique_ptr<store::Journal>> open_bench_journal(const HostOptions& options);
// `journal` must outlive it.
StatusOr<std::unique_ptr<node::OrchestratorNode>> open_bench_node(const HostOptions& options, store::Journal& journal);

// The server's side of a call: what gRPC's threads do in the product, on one thread of the orchestrator's core.
class LocalTarget final : public LoadTarget {
 public:
  LocalTarget(const HostOptions& options, node::OrchestratorNode& node);
  ~LocalTarget() override;
  pthread_t thread() { return thread_.native_handle(); }

  void register_miner(uint32_t number, core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override;
  void sync(uint32_t number, core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) override;

 private:
  void set_session(uint32_t number, const std::string& session);
  std::string session(uint32_t number);

  node::OrchestratorNode& node_;
  std::vector<NodeId> nodes_;
  std::mutex mutex_;
  std::vector<std::string> sessions_;
  BoundedQueue<std::function<void()>> calls_{1u << 20};
  std::jthread thread_;
};

}  // namespace tessera::apps
