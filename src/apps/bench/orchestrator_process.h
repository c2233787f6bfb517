// An orchestrator in a process of its own under the load of tessera-bench, so that it can be killed: calls go through a socket
// pair, each one behind its length.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "apps/bench/orchestrator_host.h"

namespace tessera::apps {

// The process's whole life: serves the calls that come by `socket`, until its other side is closed.
Status serve_orchestrator(const HostOptions& options, int socket);

// Its other side. start(), kill() and the calls come from one thread; answers arrive on another.
class OrchestratorProcess final : public LoadTarget {
 public:
  // `options.directory` must exist.
  static StatusOr<std::unique_ptr<OrchestratorProcess>> create(const HostOptions& options);
  ~OrchestratorProcess() override { kill(); }

  // Begins a process; calls are answered UNAVAILABLE until it serves.
  Status start();
  // Seconds that it took until it served, without the loading of this program's libraries, which the daemon has not; nothing
  // if it does not serve yet.
  std::optional<double> serves_after() const;
  // SIGKILL. What it has not answered is UNAVAILABLE when this returns.
  void kill();

  void register_miner(uint32_t number, core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override;
  void sync(uint32_t number, core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) override;

 private:
  // A miner has one call under way.
  struct Pending {
    std::function<void(StatusOr<core::RegisterAnswer>)> registered;
    std::function<void(StatusOr<core::SyncAnswer>)> synced;
  };
  explicit OrchestratorProcess(const HostOptions& options) : options_(options), pending_(options.load.miners) {}
  bool send(uint32_t number, Pending pending, const std::string& bytes);
  void receive(int socket);
  Pending take(uint32_t number);

  const HostOptions options_;
  pid_t process_ = -1;
  int socket_ = -1;
  mutable std::mutex mutex_;  // of what follows
  std::optional<double> serves_after_;
  std::vector<Pending> pending_;
  std::jthread receiver_;
};

}  // namespace tessera::apps
