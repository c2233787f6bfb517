// What a scenario does to the swarm, and when. It picks victims at random; what becomes of them is
// the product's affair.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "simulated_miner.h"
#include "simulated_orchestrator.h"
#include "world.h"

namespace tessera::sim {

class Faults {
 public:
  Faults(World& world, SimulatedOrchestrator& orchestrator,
         std::vector<std::unique_ptr<SimulatedMiner>>& miners)
      : world_(world), orchestrator_(orchestrator), miners_(miners) {}

  // Puts the scenario's faults on the clock.
  void schedule();
  Status handle(const Event& event);
  // Counts merges, and strikes them with sim.dead_share: to be called after every step of the orchestrator.
  void watch_merges();
  // Miners that join while the run goes on.
  std::function<void()> add_miner;

 private:
  Status begin(const config::Fault& fault);
  void schedule_next(size_t index);
  void strike(const config::Fault& fault, SimulatedMiner& victim, TimeUs until, uint64_t mask);
  std::vector<SimulatedMiner*> victims_of(const config::Fault& fault);
  TimeUs end_of(const config::Fault& fault);
  uint64_t take_mask();
  Status give_order();
  Status over(uint64_t mask);
  Status mend_everything();

  World& world_;
  SimulatedOrchestrator& orchestrator_;
  std::vector<std::unique_ptr<SimulatedMiner>>& miners_;
  uint64_t masks_in_use_ = 0;
  std::vector<bool> struck_stages_;
};

}  // namespace tessera::sim
