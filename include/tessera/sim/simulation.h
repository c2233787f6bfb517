// A swarm in one thread: the real orchestrator and miners over simulated clock, network and
// compute. One seed gives the whole run. docs/simulation.md
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tessera/base/status.h"
#include "tessera/config/scenario.h"
#include "tessera/core/orchestrator.h"
#include "tessera/sim/result.h"

namespace tessera::sim {

struct Progress {
  double simulated_s = 0;
  double duration_s = 0;
  uint64_t tokens = 0;
  uint64_t events = 0;
};

// One thread.
class Simulation {
 public:
  // `trace_path`: every event as a line; empty: only their hash.
  static StatusOr<std::unique_ptr<Simulation>> create(const config::Scenario& scenario,
                                                      const std::string& trace_path);
  ~Simulation();

  // Until the scenario's time is over, the run is finished, something broke or `stop` is true.
  // `on_progress` is called a few hundred times. An error: the simulation could not go on (a limit,
  // the trace file).
  Status run(const std::atomic<bool>& stop,
             const std::function<void(const Progress&)>& on_progress);

  const core::OrchestratorState& state() const;
  // Once, after run().
  StatusOr<Result> result();

 private:
  class Swarm;
  explicit Simulation(std::unique_ptr<Swarm> swarm);
  std::unique_ptr<Swarm> swarm_;
};

}  // namespace tessera::sim
