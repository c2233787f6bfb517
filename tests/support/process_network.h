// Links between nodes of one process. One thread carries every call to its receiver and every
// answer back; a call that is not answered in time fails, and each callback runs exactly once.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "tessera/ports/links.h"

namespace tessera::test {

// Thread-safe. Outlives the nodes and their links.
class ProcessNetwork {
 public:
  ProcessNetwork();
  ~ProcessNetwork();

  // Null: nobody is there. When this returns no call to the one before is under way any more.
  void serve_orchestrator(ports::OrchestratorHandler* handler);
  // Null also breaks the connections of everyone who talked to it.
  void serve_peer(const std::string& address, ports::PeerHandler* handler);
  // Frames to and from this address are lost from now on, or no longer.
  void cut(const std::string& address, bool is_cut);

  std::unique_ptr<ports::DonorLinks> donor_links(const std::string& address);
  std::unique_ptr<ports::PeerLink> peer_link(const NodeId& node, const std::string& address);

  class MinerLink;
  std::unique_ptr<MinerLink> orchestrator_link(const NodeId& node);

  void post(std::function<void()> task,
            std::chrono::milliseconds delay = std::chrono::milliseconds(0));

 private:
  class PeerSide;
  class DonorSide;
  void loop();
  bool is_cut(const std::string& from, const std::string& to) const;
  ports::PeerHandler* reach(const std::string& from, const core::Peer& peer);

  std::mutex queue_mutex_;
  std::condition_variable queue_changed_;
  std::multimap<std::chrono::steady_clock::time_point, std::function<void()>> queue_;
  bool closed_ = false;

  std::mutex endpoints_mutex_;  // held while a handler runs
  ports::OrchestratorHandler* orchestrator_ = nullptr;
  std::map<std::string, ports::PeerHandler*> peers_;
  struct Watch {
    std::set<std::string> talked_to;  // addresses
    std::function<void(const NodeId&)> broken;
  };
  std::map<std::string, Watch> watches_;   // by the address of who watches
  std::map<std::string, NodeId> node_at_;  // as the callers named them
  std::set<std::string> cut_;
  std::jthread thread_;
};

// A miner's way to the orchestrator.
class ProcessNetwork::MinerLink final : public ports::OrchestratorLink {
 public:
  MinerLink(ProcessNetwork& network, const NodeId& node) : network_(network), node_(node) {}
  void register_miner(core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override;
  void sync(core::SyncRequest request,
            std::function<void(StatusOr<core::SyncAnswer>)> done) override;

  // From now on nothing reaches the orchestrator. The miner is told to leave, so that its thread
  // ends at once.
  void kill() { dead_ = true; }

 private:
  ProcessNetwork& network_;
  const NodeId node_;
  std::atomic<bool> dead_{false};
  // Shared with calls that are under way.
  struct Session {
    std::mutex mutex;
    std::string value;
  };
  std::shared_ptr<Session> session_ = std::make_shared<Session>();
};

}  // namespace tessera::test
