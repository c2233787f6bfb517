// What an orchestrator's decisions look up, derived from its state so that no step has to walk over all miners, all open
// microbatches or all shards. It holds nothing of its own: rebuild() makes the same index from the same state, so that a
// state that was loaded is as good as one that was replayed. Whoever changes what is indexed says so at once.
//
// Not thread-safe: part of core::Orchestrator.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/ids.h"

namespace tessera::core {

struct MinerRecord;
struct OpenMicrobatch;
struct OrchestratorState;

inline constexpr uint32_t kNoPlace = 0xffffffff;

// What of a miner is indexed. Two equal ones need no update.
struct MinerFacts {
  StageIndex stage = 0;
  bool live = false;
  bool ready = false;             // and live
  bool behind = false;            // ready, not at its stage's epoch
  bool uncommitted = false;       // ready, not in the checkpoint under way
  bool mergeable = false;         // ready, its upload can be read
  bool qualified = false;         // mergeable, at its stage's epoch, min_microbatches in its masters
  bool qualified_for_last = false;
  bool staying = false;           // live, has a stage, and neither leaves it nor is about to
  bool moving = false;            // has a stage, and another one is meant for it
  uint32_t place = kNoPlace;
  uint32_t microbatch_us = 0;
  uint32_t in_flight = 0;
  uint64_t counted = 0;
  TimeMs forget_at = 0;           // when its record is needed no longer; 0: it is not gone
  bool operator==(const MinerFacts&) const = default;
};

// The ready miners of a stage that know each other's neighbours (docs/protocol.md, peer tables).
struct Neighbourhood {
  std::vector<MinerIndex> ready;  // ascending
  // By the time until one more microbatch would be done, then work done so far: (microseconds, counted, miner).
  std::set<std::tuple<uint64_t, uint64_t, MinerIndex>> measured;
  // Of those nobody has timed yet: (open microbatches + 1, counted, miner).
  std::set<std::tuple<uint64_t, uint64_t, MinerIndex>> unmeasured;
  bool operator==(const Neighbourhood&) const = default;
};

struct StageSummary {
  uint32_t live = 0;
  uint32_t staying = 0;
  uint32_t ready = 0;
  uint32_t behind = 0;
  uint32_t uncommitted = 0;
  uint32_t mergeable = 0;
  uint32_t mergeable_behind = 0;
  uint64_t microbatches_per_hour = 0;     // of its ready miners that were timed, added up
  std::set<MinerIndex> current;           // ready and at the stage's epoch
  std::set<MinerIndex> qualified;         // for a merge
  std::set<MinerIndex> qualified_for_last;
  std::vector<uint32_t> speeds;           // microseconds of a microbatch, of the ready miners that were timed, ascending
  std::vector<MinerIndex> places;         // who holds each place; kNoMiner: nobody
  std::set<uint32_t> vacant;              // places without a live holder
  std::vector<Neighbourhood> neighbourhoods;
  // Of the merge under way, in its reduce phase.
  uint32_t undecided = 0;                 // shards that are not accepted
  uint32_t unsettled = 0;                 // of these, those not being recomputed either
  std::map<MinerIndex, std::vector<uint32_t>> owned;  // shards, ascending
  bool operator==(const StageSummary&) const = default;

  // Of one microbatch at the stage's middle miner; 0: nobody was timed.
  uint32_t median_us() const { return speeds.empty() ? 0 : speeds[speeds.size() / 2]; }
};

class OrchestratorIndex {
 public:
  void rebuild(const OrchestratorState& state);
  // After any change of the miner's record.
  void update(const OrchestratorState& state, MinerIndex miner);
  // After a change of the stage's epoch, which decides who is behind.
  void update_stage(const OrchestratorState& state, StageIndex stage);

  // A leased microbatch, before its pathway or deadline changes and after.
  void add_lease(MicrobatchId id, const OpenMicrobatch& microbatch);
  void remove_lease(MicrobatchId id, const OpenMicrobatch& microbatch);

  // The stage's merge entered its reduce phase, or left it.
  void update_shards(const OrchestratorState& state, StageIndex stage);
  void shard_moved(StageIndex stage, uint32_t shard, MinerIndex from, MinerIndex to);
  void shard_recomputing(StageIndex stage) { stages_[stage].unsettled--; }
  void shard_accepted(StageIndex stage, bool recomputing) {
    stages_[stage].undecided--;
    if (!recomputing) stages_[stage].unsettled--;
  }

  // Miners for which another stage is meant than they have.
  uint32_t moving() const { return moving_; }
  const StageSummary& stage(StageIndex stage) const { return stages_[stage]; }
  const std::vector<StageSummary>& stages() const { return stages_; }
  // Miners that are gone, by the time from which on their records may be forgotten.
  const std::set<std::pair<TimeMs, MinerIndex>>& gone() const { return gone_; }
  // Leased microbatches by deadline.
  const std::set<std::pair<TimeMs, MicrobatchId>>& deadlines() const { return deadlines_; }
  // Leased microbatches whose proposed pathway has the miner, ascending.
  std::vector<MicrobatchId> leases_of(MinerIndex miner) const;
  // The ready miner of the stage that would be done first with one more microbatch, if possible of this neighbourhood.
  // The stage must have a ready miner.
  MinerIndex fastest(StageIndex stage, uint32_t neighbourhood) const;
  // The ready miners to choose from at random, as above; never empty.
  const std::vector<MinerIndex>& choices(StageIndex stage, uint32_t neighbourhood) const;

  bool operator==(const OrchestratorIndex&) const = default;

 private:
  const Neighbourhood& inhabited(StageIndex stage, uint32_t neighbourhood) const;
  void add(MinerIndex miner, const MinerFacts& facts);
  void remove(MinerIndex miner, const MinerFacts& facts);
  void add_ready(MinerIndex miner, const MinerFacts& facts);
  void remove_ready(MinerIndex miner, const MinerFacts& facts);

  std::vector<StageSummary> stages_;
  std::map<MinerIndex, MinerFacts> facts_;
  std::set<std::pair<TimeMs, MinerIndex>> gone_;
  uint32_t moving_ = 0;
  std::set<std::pair<TimeMs, MicrobatchId>> deadlines_;
  std::set<std::pair<MinerIndex, MicrobatchId>> leases_;
};

}  // namespace tessera::core
