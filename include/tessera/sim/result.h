// What a simulation came to. docs/simulation.md says what each figure means.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera::sim {

struct Sample {  // of the time since the sample before
  double at_s = 0;
  double tokens_per_s = 0;
  double ideal_tokens_per_s = 0;
};
struct Reroutes {  // of one kind of fault
  std::string kind;
  uint64_t count = 0;
  double ms_p50 = 0;
  double ms_p99 = 0;
  double ms_max = 0;
};
struct FaultMark {
  double at_s = 0;
  std::string kind;
  uint32_t victims = 0;
};

struct Result {
  std::string name;
  uint64_t seed = 0;
  double simulated_s = 0;
  std::string phase;  // of the run at the end
  uint64_t tokens = 0;
  double ideal_tokens = 0;
  double throughput_share = 0;  // tokens / ideal_tokens
  double reroute_ms_p50 = 0;
  double reroute_ms_p99 = 0;
  double reroute_ms_max = 0;
  uint64_t reroutes = 0;
  std::vector<Reroutes> reroutes_by_fault;
  uint64_t microbatches_done = 0;
  uint64_t microbatches_open = 0;
  uint64_t microbatches_lost = 0;            // leased once, and neither done nor open
  uint64_t microbatches_double_counted = 0;  // gradients counted beyond one per (stage, microbatch)
  uint64_t gradients_refused = 0;            // second gradients that were noticed and not counted
  uint64_t gradients_lost =
      0;  // counted ones that were in no merge when their miner's process ended
  uint64_t leases_reissued = 0;
  double redone_share = 0;       // of all compute: done again though the first to do it lives
  double redone_dead_share = 0;  // of all compute: done again because the first to do it is dead
  uint64_t faults = 0;
  uint64_t orders_obeyed = 0;  // of operators
  uint64_t moves = 0;          // of miners from one stage to another
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint64_t shards_recomputed = 0;
  // Of the first merge of every stage, which sim.dead_share strikes:
  uint64_t shards = 0;
  uint64_t shards_lost_without_rescue = 0;  // both owners were killed
  uint64_t shards_lost = 0;                 // in no result
  uint64_t stage_values = 0;                // fp32 values of the first stage
  uint64_t bytes_up_per_miner = 0;          // of a merge's blobs, per upload
  uint64_t bytes_down_per_miner = 0;
  std::vector<uint32_t> accused;            // nodes with a verdict
  uint64_t falsely_accused = 0;             // of them those that do not cheat
  uint64_t falsely_voided = 0;              // miners with a verdict that voids an epoch, who neither cheat nor were told to lie (sim.lies)
  uint64_t replica_mismatches = 0;
  bool replicas_identical = true;
  bool state_is_replay = true;  // also if there was nothing to replay
  uint64_t events = 0;
  uint64_t journal_entries = 0;
  uint64_t trace_lines = 0;
  std::string trace_sha256;
  std::string problem;  // what must never be and was; empty if nothing
  std::vector<Sample> samples;
  std::vector<FaultMark> fault_marks;

  std::string to_json() const;
  std::string to_text() const;  // for people
};

}  // namespace tessera::sim
