// What an orchestrator knows: plain values, changed by core::Orchestrator alone, readable by everyone who holds it. Every
// field is in fields(): a snapshot is the whole state.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/prng.h"
#include "tessera/core/audit_board.h"
#include "tessera/core/boundary_words.h"
#include "tessera/core/butterfly.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/events.h"
#include "tessera/core/merge_state.h"
#include "tessera/core/miner_table.h"
#include "tessera/core/orchestrator_index.h"
#include "tessera/core/recent_times.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

struct MinerRecord {
  MinerIndex index = kNoMiner;
  Registration registration;
  StageIndex stage = 0;
  bool live = false;
  bool ready = false;                      // holds its stage's state and takes work
  bool must_download = false;              // what it holds did not match the stage's, or is too old
  Epoch epoch = 0;
  uint64_t receipts_through = 0;
  uint64_t receipts_rejected = 0;          // of them those that could not be believed
  uint64_t lease_request = 0;
  std::vector<Lease> granted;              // answer to lease_request, repeated if asked again
  std::map<uint64_t, uint32_t> fresh;      // confirmed gradients since its last merge, by local step
  uint64_t unmerged_from = 0;              // local step: what came before is merged, or not in its masters
  uint64_t local_steps = 0;                // optimizer steps it is known to have done; step n has gradients of `fresh[n]`
  uint64_t counted = 0;                    // of its whole life in the run
  uint32_t in_flight = 0;                  // leased microbatches whose proposed pathway has it, its stage's gradient not yet counted
  RecentTimes own_times;                   // for one microbatch, by its receipts
  uint32_t microbatch_us = 0;              // the typical one of these; 0: none yet
  uint32_t place = kNoPlace;               // in its stage: decides its neighbourhood (orchestrator_peers.cpp)
  std::optional<ResumedMiner> resumed;     // state of its own to start from
  uint64_t checkpoint_done = 0;            // id of the last checkpoint it committed to
  std::optional<CheckpointCommit> checkpoint;
  std::optional<Digest> upload;            // of the merge to come: an aborted one is begun again with the same uploads
  Epoch carries_since = 0;                 // epoch whose base its oldest unmerged work began on
  uint32_t whole_first = 0;                // merges in which its upload must be whole before the manifest: one was late
  Epoch spoiled_merge = 0;                 // target of the merge that its upload spoiled; 0: none
  uint64_t upload_again = 0;               // number of the upload that it is to make in place of one that could not be read
  uint64_t retired_incarnation = 0;        // the process that was registered when the run was resumed; 0: none
  std::string why;                         // of its present state, for people
  bool placed = false;                     // has a stage; else it waits in the queue, and `stage` means nothing
  uint64_t ticket = 0;                     // its place in the queue while it waits there
  TimeMs lost_at = 0;
  std::optional<StageIndex> pending_stage;   // to have from its stage's next epoch boundary on
  std::optional<StageIndex> assigned_stage;  // to have in its next incarnation; it was told to drain and join again
  TimeMs moving_until = 0;                 // until then it counts as being there, though it may be away
  bool pinned = false;                     // assigned by an operator
  bool drain = false;                      // sent away by an operator
  uint64_t failed_verdicts = 0;            // that void an epoch's score

  uint32_t fresh_total() const;
  // Those of `fresh` that are in its masters, not only in a partial gradient.
  uint32_t stepped_total(uint32_t microbatches_per_step) const;
  bool on_its_way_out() const { return drain || assigned_stage.has_value(); }
  template <class A>
  void fields(A& a) {
    a("index", index)("registration", registration)("stage", stage)("live", live)("ready", ready)(
        "must_download", must_download)("epoch", epoch)("receipts_through", receipts_through)(
        "receipts_rejected", receipts_rejected)("lease_request", lease_request)("granted", granted)("fresh", fresh)("unmerged_from", unmerged_from)("local_steps", local_steps)(
        "counted", counted)("in_flight", in_flight)("own_times", own_times)("microbatch_us", microbatch_us)("place", place)(
        "resumed", resumed)("checkpoint_done", checkpoint_done)("checkpoint", checkpoint)("upload", upload)("carries_since", carries_since)(
        "whole_first", whole_first)("spoiled_merge", spoiled_merge)("upload_again", upload_again)("retired_incarnation", retired_incarnation)("why", why)(
        "placed", placed)("ticket", ticket)("lost_at", lost_at)("pending_stage", pending_stage)(
        "assigned_stage", assigned_stage)("moving_until", moving_until)("pinned", pinned)("drain", drain)("failed_verdicts", failed_verdicts);
  }
};

struct OpenMicrobatch {
  uint32_t attempt = 0;
  bool leased = false;                     // false: waits to be issued again
  TimeMs deadline = 0;
  uint64_t counted_stages = 0;
  std::vector<MinerIndex> pathway;
  bool random_pathway = false;
  TimeMs first_leased_at = 0;
  bool repair = false;                     // waits for another head, in the same attempt: its head is gone
  bool repaired = false;                   // this attempt was given to another head once
  BoundaryWords words;
  template <class A>
  void fields(A& a) {
    a("attempt", attempt)("leased", leased)("deadline", deadline)("counted_stages", counted_stages)(
        "pathway", pathway)("random_pathway", random_pathway)("first_leased_at", first_leased_at)(
        "repair", repair)("repaired", repaired)("words", words);
  }
};

inline constexpr size_t kMaxMergeRecords = 8;
inline constexpr size_t kMaxMergeVerdicts = 256;

struct StageRecord {
  uint64_t values = 0;
  Epoch epoch = 0;
  Digest state;                            // object name of base | momentum at `epoch`; zero until someone holds it
  std::set<MinerIndex> disputants;         // that hold another state at `epoch`; until it is made again
  bool remaking = false;                   // by the orchestrator, for a dispute
  bool settled = false;                    // it was: nobody's word on `epoch` counts any more
  uint32_t publisher_turn = 0;             // which of the current miners is asked to publish it
  TimeMs publisher_asked_at = 0;           // since when
  bool state_published = false;
  Epoch published_epoch = 0;               // the newest state in the blob store; a newcomer goes on from it through `past`
  Digest published_state;                  // zero: none yet
  std::optional<Merge> merge;
  std::deque<PastMerge> past;              // the last max_staleness merges, and those since published_epoch
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint32_t aborts_in_row = 0;              // of the merge to come
  TimeMs merge_paused_until = 0;           // after an abort; 0: no pause
  uint64_t shards_recomputed = 0;
  uint64_t shards_rescued = 0;             // given to another participant: an owner was gone or late
  std::deque<MergeRecord> merge_records;   // of the last kMaxMergeRecords merges
  std::deque<MergeVerdict> merge_verdicts; // the last kMaxMergeVerdicts
  uint64_t replica_mismatches = 0;
  bool final_merge_done = false;
  std::vector<uint64_t> peers_changed{0};  // by neighbourhood: the peers_version of the last change of its miners
  Epoch cooled_at = 0;                     // no routine move from or to it before this epoch
  uint64_t need_cpu_bytes = 0;             // stage_memory_bytes()
  uint64_t need_gpu_bytes = 0;

  std::optional<Digest> state_at(Epoch at) const;
  template <class A>
  void fields(A& a) {
    a("values", values)("epoch", epoch)("state", state)("disputants", disputants)(
        "remaking", remaking)("settled", settled)("publisher_turn", publisher_turn)(
        "publisher_asked_at", publisher_asked_at)("state_published", state_published)(
        "published_epoch", published_epoch)("published_state", published_state)("merge", merge)("past", past)(
        "merges", merges)("merges_aborted", merges_aborted)("aborts_in_row", aborts_in_row)(
        "merge_paused_until", merge_paused_until)("shards_recomputed", shards_recomputed)(
        "shards_rescued", shards_rescued)("merge_records", merge_records)("merge_verdicts", merge_verdicts)(
        "replica_mismatches", replica_mismatches)("final_merge_done", final_merge_done)(
        "peers_changed", peers_changed)("cooled_at", cooled_at)("need_cpu_bytes", need_cpu_bytes)(
        "need_gpu_bytes", need_gpu_bytes);
  }
};

// Other layer ranges that are being put into force.
struct Restage {
  uint64_t id = 0;
  std::vector<uint32_t> stage_layers;
  bool writing = false;                    // the new states are being made
  template <class A>
  void fields(A& a) {
    a("id", id)("stage_layers", stage_layers)("writing", writing);
  }
};

struct OrchestratorState {
  bool created = false;
  std::string run_id;
  RunSpec spec;
  DataPlan data;
  uint64_t secret = 0;
  uint32_t resumes = 0;                    // from a checkpoint
  RunPhase phase = RunPhase::kWaiting;
  TimeMs phase_deadline = 0;               // of draining, merging and checkpointing; 0: none
  RunPhase after_checkpoint = RunPhase::kRunning;
  uint64_t checkpoint_id = 0;              // of the last one begun
  bool checkpoint_writing = false;
  uint64_t checkpoint_at = 0;              // done count at which the next periodic one is due; 0: never
  std::string last_checkpoint;
  std::vector<StageRecord> stages;
  MinerTable<MinerRecord> miners;
  std::map<NodeId, MinerIndex> by_node;
  std::map<NodeId, ResumedMiner> resumable;
  uint64_t peers_version = 1;              // grows with every change that a peer table shows
  uint32_t neighbourhoods = 1;             // of every stage; a power of two
  std::map<MicrobatchId, OpenMicrobatch> open;
  std::set<MicrobatchId> reissue;
  uint64_t next_microbatch = 0;
  uint64_t done = 0;
  uint64_t leased = 0;                     // leases granted, all attempts
  uint64_t reissued = 0;                   // attempts after the first
  uint64_t repaired = 0;                   // attempts given to another head
  uint64_t double_counted = 0;             // gradients of a (stage, microbatch) beyond the first
  uint64_t lost = 0;                       // (stage, microbatch) without a counted gradient when the run was finished
  std::deque<uint32_t> completion_ms;      // of the last microbatches, from their first lease on
  uint64_t spec_version = 1;
  std::string file_spec;                   // encode(RunSpec) as the run was created or resumed with
  std::vector<MinerIndex> waiting;         // joiners without a stage, by ticket
  uint64_t next_ticket = 1;
  std::optional<Restage> restage;
  uint64_t restage_id = 0;                 // of the last one ordered
  uint64_t moves = 0;                      // of miners to other stages
  std::optional<StageIndex> poorest;       // the stage that a routine move would go to, at the last boundary
  uint32_t poorest_boundaries = 0;         // in a row at which it was that stage
  std::vector<RandomLease> unpublished;    // random pathways of complete microbatches, until the head stage's next merge
  AuditState audits;

  // What all that is secret for a while is drawn from. A resume repeats microbatches, attempts and targets whose draws are
  // published: it draws anew.
  uint64_t draw_seed() const { return resumes == 0 ? secret : mix64(secret ^ mix64(~uint64_t{resumes})); }

  template <class A>
  void fields(A& a) {
    a("created", created)("run_id", run_id)("spec", spec)("data", data)("secret", secret)("resumes", resumes)("phase", phase)(
        "phase_deadline", phase_deadline)("after_checkpoint", after_checkpoint)(
        "checkpoint_id", checkpoint_id)("checkpoint_writing", checkpoint_writing)(
        "checkpoint_at", checkpoint_at)("last_checkpoint", last_checkpoint)("stages", stages)(
        "miners", miners)("by_node", by_node)("resumable", resumable)("peers_version", peers_version)(
        "neighbourhoods", neighbourhoods)("open", open)("reissue", reissue)(
        "next_microbatch", next_microbatch)("done", done)("leased", leased)("reissued", reissued)(
        "repaired", repaired)("double_counted", double_counted)("lost", lost)("completion_ms", completion_ms)(
        "spec_version", spec_version)("file_spec", file_spec)("waiting", waiting)("next_ticket", next_ticket)(
        "restage", restage)("restage_id", restage_id)("moves", moves)("poorest", poorest)(
        "poorest_boundaries", poorest_boundaries)("unpublished", unpublished)("audits", audits);
  }
};

}  // namespace tessera::core
