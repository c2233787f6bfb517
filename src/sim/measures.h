// What a simulation is judged by. It watches and decides nothing.
//   ideal throughput   in every moment the least, over the stages, of the sum of the speeds of the
//   miners that run there
//                      (alive, not frozen, not cut off): the maximal flow of that capacity.
//                      Integrated over time
//   re-route           from a fault to the moment at which another miner of its stage has taken a
//   microbatch that the victim held
//   redone             forwards and backwards of a (stage, microbatch)
//   that another process had done before. If that
//                      process is dead, the work was lost with it; if it lives, the live ones work
//                      twice
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "event_queue.h"
#include "tessera/config/scenario.h"
#include "tessera/core/stage_state.h"
#include "tessera/sim/result.h"

namespace tessera::sim {

class Measures {
 public:
  Measures(const config::Scenario& scenario, const EventQueue& queue);

  // Whether every stage has counted a gradient of it.
  std::function<bool(MicrobatchId)> is_done = [](MicrobatchId) { return false; };

  // Gradients of the node's process that are counted and in no merge.
  std::function<uint64_t(uint32_t node)> gradients_at_stake = [](uint32_t) { return 0; };

  void process_began(uint32_t node, uint32_t generation);
  void process_ended(uint32_t node);
  // What the node adds to its stage from now on; no stage: nothing.
  void capacity(uint32_t node, std::optional<StageIndex> stage, double microbatches_per_s);

  // The node has let a microbatch in, or has a lease of it.
  void taken(uint32_t node, StageIndex stage, MicrobatchId microbatch);
  void computed(uint32_t node, uint32_t generation, StageIndex stage, MicrobatchId microbatch,
                bool backward, double ms);
  void fault(const std::string& kind, uint32_t victims);
  // It has these of its stage in its hands and stands still or is gone.
  void struck(config::FaultKind kind, uint32_t node, StageIndex stage,
              const std::set<core::MicrobatchKey>& held);
  // The base of a stage at an epoch, as one replica computed it.
  void base_computed(StageIndex stage, Epoch epoch, const Digest& state);
  // Blobs of one job of a merge; every miner's part in a merge begins with one upload.
  void moved_in_merge(bool uploads, uint64_t up, uint64_t down);
  void sample(uint64_t microbatches_done);

  uint64_t faults() const { return faults_; }
  void fill(Result* result, uint64_t microbatches_done);

 private:
  struct Capacity {
    std::optional<StageIndex> stage;
    double microbatches_per_s = 0;
  };
  struct StageWork {
    uint32_t node[2] = {0, 0};        // that did its forward and backward last
    uint32_t generation[2] = {0, 0};  // 0: nobody
  };
  struct Waiting {
    uint32_t victim = 0;
    TimeUs since = 0;
    config::FaultKind kind = config::FaultKind::kKill;
  };
  void integrate();
  void prune();

  const config::Scenario& scenario_;
  const EventQueue& queue_;
  const uint32_t stages_;
  std::vector<uint32_t> generations_;  // of the live process of each node; 0: none
  std::vector<Capacity> capacities_;
  std::vector<double> stage_speed_;
  TimeUs integrated_to_ = kBeginUs;
  double ideal_ = 0;  // microbatches

  std::unordered_map<MicrobatchId, std::vector<StageWork>>
      work_;  // of microbatches that are not done
  uint64_t work_began_ = 0;
  double total_ms_ = 0;
  double redone_live_ms_ = 0;
  double redone_dead_ms_ = 0;
  std::map<std::pair<MicrobatchId, StageIndex>, Waiting> waiting_;
  std::map<config::FaultKind, std::vector<double>> reroute_ms_;
  uint64_t reroutes_ = 0;
  uint64_t faults_ = 0;
  uint64_t gradients_lost_ = 0;
  uint64_t merge_uploads_ = 0;
  uint64_t merge_bytes_up_ = 0;
  uint64_t merge_bytes_down_ = 0;
  std::vector<FaultMark> marks_;
  std::map<std::pair<StageIndex, Epoch>, Digest> bases_;
  bool replicas_identical_ = true;
  std::vector<Sample> samples_;
};

}  // namespace tessera::sim
