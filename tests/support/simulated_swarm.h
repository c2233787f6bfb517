// A whole run in one thread: the orchestrator's and the miners' state machines over a simulated
// network, clock, compute and blob store. One seed gives the whole run. During the chaos everything
// fails now and then: processes die, freeze and drain, frames, reports and answers are lost, come
// late or twice, jobs fail, shards are lied about, the orchestrator crashes. Then everything works,
// and the run must finish.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "support/orchestrator_world.h"
#include "tessera/base/prng.h"
#include "tessera/core/miner.h"

namespace tessera::test {

class SimulatedSwarm {
 public:
  SimulatedSwarm(const core::RunSpec& spec, uint64_t seed);

  // Faults for so long, then none until the run is over or `limit_ms` have passed.
  void run(TimeMs chaos_ms, TimeMs limit_ms);
  // What is wrong at the end of a finished run; empty if nothing is.
  std::string problem_at_end() const;

  OrchestratorWorld world;
  uint64_t faults = 0;
  // Operators give orders during the chaos: assignments, drains, other settings, other stages.
  bool operators = false;
  uint64_t orders = 0;  // that were obeyed
  // The first thing that must never happen and did.
  std::string broken;

 private:
  struct Process {
    uint64_t number = 0;
    std::optional<StageIndex> wanted_stage;
    uint64_t incarnation = 0;
    bool alive = false;
    TimeMs frozen_until = 0;
    TimeMs restart_at = 0;  // 0: stays down
    std::unique_ptr<core::Miner> miner;
    MinerIndex index = kNoMiner;
    bool registered = false;
    bool reporting = false;
    TimeMs last_report = 0;
    TimeMs last_tick = 0;
    TimeMs drain_until = 0;
    // the engine
    TimeMs compute_free_at = 0;
    uint64_t weight_version = 0;
    uint32_t accumulated = 0;
    std::set<core::MicrobatchKey> held;
    std::set<MicrobatchId> gradients;  // ever accumulated by this process
    // the background worker
    TimeMs background_free_at = 0;
    Digest base;
    Epoch epoch = 0;
  };
  using Reply = std::function<void(core::Admission)>;

  void at(TimeMs when, std::function<void()> what);
  // Runs in the process, if it is still that one; later, if it is frozen.
  void in_process(size_t p, TimeMs when, std::function<void(Process&)> what);
  bool fault(double probability);
  TimeMs delay(TimeMs most) {
    return 1 + static_cast<TimeMs>(random_.below(static_cast<uint64_t>(most)));
  }
  void require(bool condition, const std::string& what);

  void start_process(size_t p);
  void kill_process(size_t p, TimeMs down_ms);
  void wreak();
  void give_order();
  void poll();
  void poll_process(size_t p);
  void poll_orchestrator();
  void join(size_t p);
  void report(size_t p);

  void step(size_t p, core::MinerEvent event);
  void perform(size_t p, core::MinerEffect effect);
  void send(size_t p, core::miner_effect::SendFrame effect);
  void probe(size_t p, core::miner_effect::Probe effect);
  void break_connections(size_t p);
  void compute(size_t p, core::ComputeJob job);
  core::MinerEvent computed(Process& process, core::ComputeJob& job);
  void background(size_t p, core::BackgroundJob job);
  core::MinerEvent worked(Process& process, core::BackgroundJob& job);

  const core::RunSpec spec_;
  Prng random_;
  Prng order_random_;
  TimeMs now_ = 0;
  bool chaos_ = true;
  bool orchestrator_up_ = true;
  std::map<std::pair<TimeMs, uint64_t>, std::function<void()>> queue_;
  uint64_t next_entry_ = 0;
  std::vector<Process> processes_;
  std::map<MinerIndex, TimeMs> heard_;
  std::set<Digest> blobs_;
  uint64_t next_reply_ = 1;
  std::map<uint64_t, Reply> replies_;
};

}  // namespace tessera::test
