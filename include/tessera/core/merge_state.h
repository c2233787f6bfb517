// A merge as the orchestrator knows it, and what stays of it. Part of core/orchestrator_state.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/core/butterfly.h"
#include "tessera/core/merge_messages.h"

namespace tessera::core {

// What an owner committed.
struct ShardCopy {
  MinerIndex miner = kNoMiner;
  Digest result = {};
  Digest object = {};
  Digest unavailable = {};
  Digest measures = {};  // of the encoded measures: part of what owners must agree on
  Signature signature{};
  bool agrees_with(const ShardCopy& other) const {
    return result == other.result && measures == other.measures;
  }
  template <class A>
  void fields(A& a) {
    a("miner", miner)("result", result)("object", object)("unavailable", unavailable)(
        "measures", measures)("signature", signature);
  }
};

// How a planned owner of a shard did.
enum class OwnerOutcome : uint8_t {
  kPending = 0,
  kRight = 1,        // its copy is the accepted one
  kWrong = 2,        // it committed something else
  kMissing = 3,      // it was gone, or late
  kUnavailable = 4,  // it could not read an upload that others could
};

struct MergeShard {
  PlannedShard plan;
  uint32_t owner_a = 0;  // places in the manifest: the plan's, or who took over
  uint32_t owner_b = 0;
  std::optional<ShardCopy> copy_a = {};
  std::optional<ShardCopy> copy_b = {};
  std::vector<UploadMeasure> measures = {};  // of copy_a, or copy_b if that came first, or recomputed
  std::vector<uint32_t> passed = {};         // owners that were replaced
  OwnerOutcome outcome_a = OwnerOutcome::kPending;  // of the plan's owners
  OwnerOutcome outcome_b = OwnerOutcome::kPending;
  bool sampled = false;      // equal copies that are recomputed all the same
  bool recomputing = false;  // by the orchestrator; when it is accepted: was recomputed
  std::optional<Digest> accepted = {};
  std::vector<ResultCopy> copies = {};  // of what was accepted
  template <class A>
  void fields(A& a) {
    a("plan", plan)("owner_a", owner_a)("owner_b", owner_b)("copy_a", copy_a)("copy_b", copy_b)(
        "measures", measures)("passed", passed)("outcome_a", outcome_a)("outcome_b", outcome_b)(
        "sampled", sampled)("recomputing", recomputing)("accepted", accepted)("copies", copies);
  }
};

enum class MergeFault : uint8_t {
  kWrongReduction = 0,          // its copy is not what the manifest's uploads give
  kUnavailableWithoutCause = 1, // it called an upload unreadable that others read
  kUnreadableUpload = 2,        // what it committed can't be read, or is not of this stage
  kNotFinite = 3,               // gates, of whole uploads
  kNorm = 4,
  kCosine = 5,
  kUnreadableResult = 6,        // its copy of a shard is not what it committed, which was right
};
const char* name_of(MergeFault fault);

// Why an upload or a reduction did not count, with what is needed to check it: the manifest and the
// commitments are in the journal, so anyone who reads the uploads can recompute the shard.
struct MergeVerdict {
  Epoch target = 0;
  MinerIndex miner = kNoMiner;
  MergeFault fault = MergeFault::kWrongReduction;
  uint64_t first_block = 0;  // of a shard; 0 and 0: the whole upload
  uint64_t block_count = 0;
  uint32_t shard = 0;
  Digest committed = {};
  Digest expected = {};
  double measure = 0;        // of a gate
  double bound = 0;
  Signature signature{};     // of the commitment
  template <class A>
  void fields(A& a) {
    a("target", target)("miner", miner)("fault", fault)("first_block", first_block)(
        "block_count", block_count)("shard", shard)("committed", committed)("expected", expected)(
        "measure", measure)("bound", bound)("signature", signature);
  }
};

// What stays of a complete merge for people: nothing here is secret any more.
struct ShardRecord {
  uint32_t owner_a = 0;
  uint32_t owner_b = 0;
  OwnerOutcome outcome_a = OwnerOutcome::kPending;
  OwnerOutcome outcome_b = OwnerOutcome::kPending;
  bool sampled = false;
  bool recomputed = false;
  template <class A>
  void fields(A& a) {
    a("owner_a", owner_a)("owner_b", owner_b)("outcome_a", outcome_a)("outcome_b", outcome_b)(
        "sampled", sampled)("recomputed", recomputed);
  }
};
struct MergeRecord {
  Epoch target = 0;
  std::vector<MinerIndex> participants = {};
  std::vector<uint32_t> counts = {};
  std::vector<double> norms = {};    // of their uploads
  std::vector<double> cosines = {};
  std::vector<ShardRecord> shards = {};
  uint32_t lost_without_rescue = 0;  // shards that no planned owner delivered
  template <class A>
  void fields(A& a) {
    a("target", target)("participants", participants)("counts", counts)("norms", norms)(
        "cosines", cosines)("shards", shards)("lost_without_rescue", lost_without_rescue);
  }
};

struct Merge {
  Epoch target = 0;
  MergePhase phase = MergePhase::kSnapshot;
  TimeMs deadline = 0;
  bool final = false;  // the run's last: begun when no work was left
  std::set<MinerIndex> invited = {};
  std::map<MinerIndex, UploadCommit> uploads = {};
  // From the freeze on: the manifest, ordered by miner.
  std::vector<MinerIndex> participants = {};
  std::vector<uint32_t> counts = {};  // B_m
  std::vector<float> weights = {};
  uint32_t round = 0;            // of manifests; later ones are without those whose upload was late or gated
  bool gate_decided = false;
  std::set<MinerIndex> gated = {};
  uint32_t first_shard = 0;      // number of shards[0]; another one in every attempt and round, so that what comes late
                                 // from an earlier one fits nothing
  std::vector<MergeShard> shards = {};
  std::vector<UploadMeasure> measured = {};  // sum_of_measures() when all shards were accepted
  bool uploads_are_whole() const;            // the participants'
  uint32_t upload_rounds() const;            // in how many parts they go up: as if all who are invited took part
  std::vector<UploadMeasure> sum_of_measures() const;
  template <class A>
  void fields(A& a) {
    a("target", target)("phase", phase)("deadline", deadline)("final", final)("invited", invited)(
        "uploads", uploads)("participants", participants)("counts", counts)("weights", weights)(
        "round", round)("gate_decided", gate_decided)("gated", gated)("first_shard", first_shard)("shards", shards)(
        "measured", measured);
  }
};

// Who committed a shard that was accepted because its owners agreed.
struct AgreedShard {
  uint64_t first_block = 0;
  uint32_t shard = 0;  // its number
  uint32_t place = 0;  // among the merge's shards
  MinerIndex a = kNoMiner;
  MinerIndex b = kNoMiner;
  template <class A>
  void fields(A& a_) {
    a_("first_block", first_block)("shard", shard)("place", place)("a", a)("b", b);
  }
};

// A shard of a complete merge that a replica could not have.
struct Recheck {
  MinerIndex asked_by = kNoMiner;
  bool under_way = false;
  bool settled = false;  // the orchestrator's own copy is among the results: what still comes is old
  uint32_t tries = 0;    // that ended in nothing
  template <class A>
  void fields(A& a) {
    a("asked_by", asked_by)("under_way", under_way)("settled", settled)("tries", tries);
  }
};

struct PastMerge {
  Epoch target = 0;
  Digest from = {};  // the stage's state before it
  std::vector<MinerIndex> participants = {};
  std::vector<MinerIndex> dropped = {};  // whose carried work was too old
  std::vector<UploadRef> uploads = {};   // of the participants: a shard whose copies are all bad can be made again
  std::vector<ShardResult> results = {};
  std::vector<AgreedShard> agreed = {};       // in the order of results
  std::map<uint64_t, Recheck> rechecks = {};  // by first block
  std::map<MinerIndex, uint32_t> false_alarms = {};  // who called a result unreadable that can be read, and how often
  double outer_learning_rate = 0;   // as the run had them when it was complete
  double outer_momentum = 0;
  template <class A>
  void fields(A& a) {
    a("target", target)("from", from)("participants", participants)("dropped", dropped)(
        "uploads", uploads)("results", results)("agreed", agreed)("rechecks", rechecks)(
        "false_alarms", false_alarms)("outer_learning_rate", outer_learning_rate)(
        "outer_momentum", outer_momentum);
  }
};

}  // namespace tessera::core
