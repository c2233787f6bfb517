// What nodes tell each other about a merge (docs/protocol.md, Merges). Part of core/messages.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/ids.h"

namespace tessera::core {

// A participant's promise: the object of its pseudo-gradient (base - snapshot, with what earlier
// uploads left out, in merge.upload_format) and where it took the snapshot. The object's name is a
// hash over the hashes of its blocks, whose size does not depend on who takes part: it commits every
// block before anyone knows who will reduce which. The list of the hashes is stored before, the
// blocks after it: their way up may go on while others reduce what is there.
struct UploadCommit {
  Epoch target = 0;  // the epoch the merge leads to
  Digest object = {};
  uint64_t snapshot_step = 0;  // local steps done when the snapshot was taken
  uint64_t snapshot_version = 0;
  Signature signature{};  // by the participant over signed_bytes()
  bool whole = false;     // said again when every block is stored; not signed
  uint64_t again = 0;     // the directive's that asked for it; not signed
  template <class A>
  void content(A& a) {
    a("target", target)("object", object)("snapshot_step", snapshot_step)(
        "snapshot_version", snapshot_version);
  }
  template <class A>
  void fields(A& a) {
    content(a);
    a("signature", signature)("whole", whole)("again", again);
  }
  std::string signed_bytes(const std::string& run_id, StageIndex stage) const;
};

// What an owner measured of one upload on its shard, for the gate. Sums over the shard's blocks of
// the block's squared norm, and of that times the cosine between the upload's block and the mean of
// the other uploads' blocks, each divided by its norm. An energy of -1: a value is not finite.
struct UploadMeasure {
  double energy = 0;
  double alignment = 0;
  bool is_finite() const { return energy >= 0; }
  void add(const UploadMeasure& other) {
    if (!is_finite() || !other.is_finite()) {
      *this = {-1, 0};
    } else {
      energy += other.energy;
      alignment += other.alignment;
    }
  }
  template <class A>
  void fields(A& a) {
    a("energy", energy)("alignment", alignment);
  }
};

// An owner's word on a shard.
struct ShardCommit {
  Epoch target = 0;
  uint32_t shard = 0;
  Digest result = {};       // of the reduced bytes: equal for every honest owner
  Digest object = {};       // where its copy lies, encrypted under the task's token: different for every owner
  Digest unavailable = {};  // INPUT_UNAVAILABLE: the upload that can't be read; then there is no result. Zero: none
  std::vector<UploadMeasure> measures = {};  // one an upload of the manifest, in its order
  Signature signature{};                // by the owner over signed_bytes()
  template <class A>
  void content(A& a) {
    a("target", target)("shard", shard)("result", result)("object", object)(
        "unavailable", unavailable)("measures", measures);
  }
  template <class A>
  void fields(A& a) {
    content(a);
    a("signature", signature);
  }
  std::string signed_bytes(const std::string& run_id, StageIndex stage) const;
};

// A replica's word that it can't have a shard of a complete merge: no copy has the digest that its owners agreed on, and its
// own reduction of the uploads hasn't either.
struct UnreadableResult {
  Epoch target = 0;
  uint64_t first_block = 0;  // of the shard
  template <class A>
  void fields(A& a) {
    a("target", target)("first_block", first_block);
  }
};
inline constexpr size_t kMaxUnreadableResults = 16;  // of a report

struct MergeApplied {
  Epoch epoch = 0;
  Digest state = {};                // object name of base | momentum after the outer step
  uint64_t version_after = 0;  // the weight version that the carry-over made
  uint64_t local_step = 0;     // local steps done before it
  template <class A>
  void fields(A& a) {
    a("epoch", epoch)("state", state)("version_after", version_after)("local_step", local_step);
  }
};

enum class MergePhase : uint8_t { kSnapshot = 0, kReduce = 1, kApply = 2 };

struct UploadRef {
  Digest object = {};
  float weight = 0;  // B_m / sum of B
  template <class A>
  void fields(A& a) {
    a("object", object)("weight", weight);
  }
};

struct ShardTask {
  uint32_t shard = 0;  // names the shard and the attempt at the merge: one that is begun again has other numbers
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  Digest token = {};  // of this owner's copy alone: the key it is stored under, and the right to read it
  template <class A>
  void fields(A& a) {
    a("shard", shard)("first_block", first_block)("block_count", block_count)("token", token);
  }
};

// Where a copy of a reduced shard lies, and the token that opens it.
struct ResultCopy {
  Digest object = {};
  Digest token = {};
  template <class A>
  void fields(A& a) {
    a("object", object)("token", token);
  }
};

struct ShardResult {
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  Digest result = {};                   // of the bytes, whichever copy they are read from
  std::vector<ResultCopy> copies = {};  // at most kMaxResultCopies
  template <class A>
  void fields(A& a) {
    a("first_block", first_block)("block_count", block_count)("result", result)("copies", copies);
  }
};
inline constexpr size_t kMaxResultCopies = 3;

// A shard on which its owners agree, in a merge that is not complete: a copy of it can be fetched and not be read.
struct SealedResult {
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  Digest object = {};
  template <class A>
  void fields(A& a) {
    a("first_block", first_block)("block_count", block_count)("object", object);
  }
};

// Of a merge: the list of them must fit an answer. A stage of more blocks merges at most kMaxUploadsOfLargeStages uploads, which
// is the most whose pairs are no more than that; one of fewer has no more shards than blocks.
inline constexpr uint32_t kMaxUploads = 4096;  // of a manifest
inline constexpr uint64_t kMaxResults = 12288;
inline constexpr uint32_t kMaxUploadsOfLargeStages = 157;
inline constexpr size_t kEnoughSealedResults = 256;  // of an answer; it ends with a whole round
inline constexpr size_t kMaxSealedResults = kEnoughSealedResults + kMaxUploads / 2;
static_assert(uint64_t{kMaxUploadsOfLargeStages} * (kMaxUploadsOfLargeStages - 1) / 2 <= kMaxResults);

// A trimmed mean sorts every value of all uploads.
inline constexpr uint32_t kMaxTrimmedUploads = 128;

// What a miner shall do for its stage's merge now. Repeated in every answer until it is done, so a
// lost one costs nothing.
struct MergeDirective {
  Epoch target = 0;
  MergePhase phase = MergePhase::kSnapshot;
  std::vector<UploadRef> uploads = {};    // kReduce and kApply: the manifest, in its order
  std::vector<ShardTask> tasks = {};      // kReduce: this miner's shards only
  uint64_t again = 0;                     // kSnapshot: not 0: this miner's upload before could not be read; one more is made
                                          // for each number
  uint32_t rounds = 1;                    // kSnapshot, kReduce: in how many parts uploads go up, one after the other
  // kReduce: others' shards of whole rounds, whichever this miner has not heard of. Who is late holds up a whole round: what is
  // named, and when, says nothing about who shares a shard with whom.
  std::vector<SealedResult> sealed = {};
  uint64_t sealed_heard = 0;              // kReduce: goes into the next report
  bool uploads_whole = false;             // kReduce: nothing of them is on its way any more
  std::vector<ShardResult> results = {};  // kApply: all shards
  bool participant = false;          // kApply: this miner's upload was in the manifest
  double outer_learning_rate = 0;    // kApply: of this merge, the same for every replica whenever it applies it
  double outer_momentum = 0;
  bool drop_carry = false;           // kApply: its local work missed more than merge.max_staleness merges
};

// Of the sealed entries of a merge. A resume repeats targets, whose keys are published: it seals under others. Epochs of a
// stage do not reach 2^32, resumes of a run not 2^24.
inline uint64_t merge_seal_id(StageIndex stage, Epoch target, uint32_t resumes) {
  return uint64_t{stage} << 56 | uint64_t{resumes} << 32 | target;
}

// The key of the stochastic rounding of a merge's results.
uint64_t merge_rounding_key(const std::string& run_id, StageIndex stage, Epoch target);

}  // namespace tessera::core
