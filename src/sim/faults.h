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
  // sim.dead_share: to be called after every step of the orchestrator.
  void strike_merges();
  // What came of it, and who was accused of what.
  void fill(Result* result) const;
  // Whether both owners of a shard of the running merge cheat as a pair.
  bool owned_by_pair(StageIndex stage, uint32_t shard) const;
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
  // The first merge of a stage.
  struct StruckMerge {
    Epoch target = 0;       // 0: there was none yet
    uint64_t shards = 0;    // that are not empty
    uint64_t lost = 0;      // in no result; all, until it is over
    bool over = false;
  };
  bool cheats(MinerIndex miner, const std::string& kind) const;
  void watch(StageIndex stage, StruckMerge* struck) const;
  std::vector<StruckMerge> struck_merges_;
  uint64_t shards_without_owner_ = 0;
};

}  // namespace tessera::sim
