// Thousands of miners that register, report, lease and sign as real ones do, and compute nothing: the load on an
// orchestrator. All of them live on one thread, run()'s caller; answers may come on any.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"
#include "tessera/core/messages.h"

namespace tessera::apps {

struct LoadOptions {
  uint32_t miners = 10000;
  uint32_t stages = 10;
  double heartbeat_hz = 1;
  double receipts_per_second = 5000;
  TimeMs work_ms = 200;  // of a microbatch at each stage
};

// How the load reaches the orchestrator. `done` is called once, on any thread.
class LoadTarget {
 public:
  virtual ~LoadTarget() = default;
  virtual void register_miner(uint32_t number, core::Registration registration,
                              std::function<void(StatusOr<core::RegisterAnswer>)> done) = 0;
  virtual void sync(uint32_t number, core::SyncRequest request,
                    std::function<void(StatusOr<core::SyncAnswer>)> done) = 0;
};

struct LoadFigures {
  std::vector<float> answer_ms;  // of reports, since the last clear()
  uint64_t receipts = 0;         // acknowledged
  uint64_t leases = 0;           // granted
  uint64_t failures = 0;         // calls that ended in an error
  uint64_t registrations = 0;
  uint64_t skipped = 0;          // heartbeats that fell due while the miner's last report was not answered
  uint64_t forgotten = 0;        // times the orchestrator did not know what it had acknowledged: must stay 0
  void clear() { *this = {}; }
};

// What a miner was told is safe.
struct Acknowledged {
  MinerIndex miner = kNoMiner;
  uint64_t incarnation = 0;
  uint64_t receipts = 0;
  uint64_t lease_request = 0;
};

class OrchestratorLoad {
 public:
  OrchestratorLoad(const LoadOptions& options, LoadTarget& target);

  static KeyPair key_of(uint32_t number);
  // Until everyone is ready, or the time is over.
  bool join(std::chrono::seconds limit);
  // `stop` may end it early; asked about a hundred times a second.
  void run(std::chrono::milliseconds length, const std::function<bool()>& stop = [] { return false; });
  // No further reports; waits for the answers to those under way, at most so long.
  void settle(std::chrono::milliseconds limit);

  LoadFigures figures;
  std::vector<Acknowledged> acknowledged() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct SimulatedMiner {
    explicit SimulatedMiner(const KeyPair& pair) : key(pair) {}
    KeyPair key;
    MinerIndex index = kNoMiner;
    StageIndex stage = 0;
    uint64_t incarnation = 0;
    bool registered = false;
    bool ready = false;
    bool waiting = false;              // for an answer
    bool publishes = false;
    Clock::time_point asked_at;
    uint64_t peers_version = 0;
    uint64_t receipts_made = 0;
    uint64_t receipts_acknowledged = 0;
    uint64_t lease_request = 1;
    double lease_budget = 0;
    std::deque<core::Receipt> receipts;
  };
  struct Inbound {
    uint32_t number = 0;
    Clock::time_point at;
    std::optional<StatusOr<core::RegisterAnswer>> registered;
    std::optional<StatusOr<core::SyncAnswer>> synced;
  };
  struct Work {
    MinerIndex miner = kNoMiner;
    MinerIndex upstream = kNoMiner;
    MinerIndex downstream = kNoMiner;
    MicrobatchId microbatch = 0;
    uint32_t attempt = 0;
  };

  void drain();
  void heartbeat(uint32_t number);
  void on_registered(SimulatedMiner& miner, StatusOr<core::RegisterAnswer> answer);
  void on_synced(SimulatedMiner& miner, StatusOr<core::SyncAnswer> answer, double milliseconds);
  void take_leases(SimulatedMiner& miner, const core::SyncAnswer& answer);
  void finish_work(Clock::time_point now);
  void sign(const Work& work);
  static Digest state_of(StageIndex stage);

  const LoadOptions options_;
  LoadTarget& target_;
  std::string run_id_;
  std::vector<SimulatedMiner> miners_;
  std::vector<uint32_t> number_of_;    // by the orchestrator's index
  std::multimap<Clock::time_point, Work> work_;
  uint32_t next_ = 0;                  // whose heartbeat is next
  uint32_t ready_ = 0;
  uint32_t waiting_ = 0;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Inbound> inbox_;
};

}  // namespace tessera::apps
