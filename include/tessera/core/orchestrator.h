// The orchestrator as a state machine: step(time, event) changes the state and returns what the shell must do. Nothing
// else changes it; time enters as data; the same events give the same state (the journal is replayed through step()).
//
// Not thread-safe: one thread owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/status.h"
#include "tessera/core/assignment.h"
#include "tessera/core/butterfly.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/events.h"
#include "tessera/core/orchestrator_index.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

// ---- state, readable by everyone who holds the object ---------------------------------------------------------------

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
  std::map<uint64_t, uint32_t> fresh;      // counted gradients since its last merge, by local step
  uint64_t local_steps = 0;                // optimizer steps it is known to have done; step n has gradients of `fresh[n]`
  uint64_t counted = 0;                    // of its whole life in the run
  uint32_t in_flight = 0;                  // leased microbatches whose proposed pathway has it, its stage's gradient not yet counted
  uint32_t microbatch_us = 0;              // moving average of its own time for one, by its receipts; 0: none yet
  uint32_t place = kNoPlace;               // in its stage: decides its neighbourhood (orchestrator_peers.cpp)
  std::optional<ResumedMiner> resumed;     // state of its own to start from
  uint64_t checkpoint_done = 0;            // id of the last checkpoint it committed to
  std::optional<CheckpointCommit> checkpoint;
  std::optional<Digest> upload;            // of the merge to come: an aborted one is begun again with the same uploads
  Epoch spoiled_merge = 0;                 // target of the merge that its upload could not be read in; 0: none
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

  uint32_t fresh_total() const;
  // Those of `fresh` that are in its masters, not only in a partial gradient.
  uint32_t stepped_total(uint32_t microbatches_per_step) const;
  bool on_its_way_out() const { return drain || assigned_stage.has_value(); }
};

struct OpenMicrobatch {
  uint32_t attempt = 0;
  bool leased = false;                     // false: waits to be issued again
  TimeMs deadline = 0;
  uint64_t counted_stages = 0;
  std::vector<MinerIndex> pathway;
  bool random_pathway = false;
};

struct MergeShard {
  PlannedShard plan;
  std::optional<Digest> copy_a;
  std::optional<Digest> copy_b;
  bool recomputing = false;
  std::optional<Digest> accepted;
};

struct Merge {
  Epoch target = 0;
  MergePhase phase = MergePhase::kSnapshot;
  TimeMs deadline = 0;
  bool final = false;                      // the run's last: begun when no work was left
  std::set<MinerIndex> invited;
  std::map<MinerIndex, UploadCommit> uploads;
  // From the freeze on: the manifest, ordered by miner.
  std::vector<MinerIndex> participants;
  std::vector<uint32_t> counts;            // B_m
  std::vector<float> weights;
  uint32_t first_shard = 0;                // number of shards[0]; another one in every attempt, so that what comes late
                                           // from an aborted one fits nothing
  std::vector<MergeShard> shards;
};

struct PastMerge {
  Epoch target = 0;
  Digest from;                             // the stage's state before it
  std::vector<MinerIndex> participants;
  std::vector<ShardResult> results;
  double outer_learning_rate = 0;          // as the run had them when it was complete
  double outer_momentum = 0;
};

struct StageRecord {
  uint64_t values = 0;
  Epoch epoch = 0;
  Digest state;                            // object name of base | momentum at `epoch`; zero until someone holds it
  bool state_published = false;
  Epoch published_epoch = 0;               // the newest state in the blob store; a newcomer goes on from it through `past`
  Digest published_state;                  // zero: none yet
  std::optional<Merge> merge;
  std::deque<PastMerge> past;              // the last max_staleness merges, and those since published_epoch
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint64_t shards_recomputed = 0;
  uint64_t replica_mismatches = 0;
  bool final_merge_done = false;
  std::vector<uint64_t> peers_changed{0};  // by neighbourhood: the peers_version of the last change of its miners
  Epoch cooled_at = 0;                     // no routine move from or to it before this epoch
  uint64_t need_cpu_bytes = 0;             // stage_memory_bytes()
  uint64_t need_gpu_bytes = 0;

  std::optional<Digest> state_at(Epoch at) const;
};

// Other layer ranges that are being put into force.
struct Restage {
  uint64_t id = 0;
  std::vector<uint32_t> stage_layers;
  bool writing = false;                    // the new states are being made
};

struct OrchestratorState {
  bool created = false;
  std::string run_id;
  RunSpec spec;
  DataPlan data;
  uint64_t secret = 0;
  RunPhase phase = RunPhase::kWaiting;
  TimeMs phase_deadline = 0;               // of draining, merging and checkpointing; 0: none
  RunPhase after_checkpoint = RunPhase::kRunning;
  uint64_t checkpoint_id = 0;              // of the last one begun
  bool checkpoint_writing = false;
  uint64_t checkpoint_at = 0;              // done count at which the next periodic one is due; 0: never
  std::string last_checkpoint;
  std::vector<StageRecord> stages;
  std::vector<MinerRecord> miners;         // by index
  std::map<NodeId, MinerIndex> by_node;
  std::map<NodeId, ResumedMiner> resumable;
  uint64_t peers_version = 1;              // grows with every change that a peer table shows
  uint32_t neighbourhoods = 1;             // of every stage; a power of two
  std::map<MicrobatchId, OpenMicrobatch> open;
  std::set<MicrobatchId> reissue;
  uint64_t next_microbatch = 0;
  uint64_t done = 0;
  uint64_t leased = 0;                     // leases granted, all attempts
  uint64_t reissued = 0;
  uint64_t double_counted = 0;
  uint64_t spec_version = 1;
  std::string file_spec;                   // encode(RunSpec) as the run was created or resumed with
  std::vector<MinerIndex> waiting;         // joiners without a stage, by ticket
  uint64_t next_ticket = 1;
  std::optional<Restage> restage;
  uint64_t restage_id = 0;                 // of the last one ordered
  uint64_t moves = 0;                      // of miners to other stages
};

// ---- what the shell does after a step -------------------------------------------------------------------------------

struct RecomputeShard {
  StageIndex stage = 0;
  Epoch target = 0;
  uint32_t shard = 0;  // its number, as in ShardTask
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  std::vector<UploadRef> uploads;
  uint64_t stage_values = 0;
  uint32_t block_values = 0;
};
struct WriteCheckpoint {
  uint64_t id = 0;
};
struct ChangeStages {
  uint64_t id = 0;
  std::vector<uint32_t> stage_layers;
};
struct Decision {
  std::string text;  // for the log: what was decided and why
  bool warning = false;
};
struct Effects {
  std::vector<RecomputeShard> recompute;
  std::optional<WriteCheckpoint> checkpoint;
  std::optional<ChangeStages> restage;
  std::vector<Decision> decisions;
};

class Orchestrator {
 public:
  // `now` must not decrease from call to call.
  Effects step(TimeMs now, const Event& event);

  const OrchestratorState& state() const { return state_; }
  const OrchestratorIndex& index() const { return index_; }

  // True when a Ticked at `now` would change something; the shell steps one then.
  bool due(TimeMs now) const;

  // ---- questions a shell asks before it makes an event; none changes anything ----
  // The miner of a registered, same incarnation; null otherwise.
  const MinerRecord* find(const NodeId& node, uint64_t incarnation) const;
  RegisterAnswer refusal_for(const Registration& registration) const;  // kNone: would be admitted
  // The events that are news in a report, in order (receipts already checked by the shell).
  std::vector<Event> news_in(const SyncRequest& request) const;
  // The request for leases in a report, if it can be met now: asked after the report's other news was stepped, which may
  // have made room.
  std::optional<Event> lease_request_in(const SyncRequest& request) const;
  SyncAnswer answer_for(const SyncRequest& request) const;
  // Orders: the event to step, or why not. An order that changes nothing gives no event.
  StatusOr<std::optional<Event>> assign_order(MinerIndex miner, StageIndex stage, bool force) const;
  StatusOr<std::optional<Event>> drain_order(MinerIndex miner) const;
  StatusOr<std::optional<Event>> spec_order(const std::string& key, const std::string& value) const;
  StatusOr<std::optional<Event>> stages_order(const std::vector<uint32_t>& stage_layers) const;
  // Place of a waiting miner, from 1; and why it waits.
  size_t queue_position(const MinerRecord& miner) const;
  // The recomputations under way: after a replay the shell begins them again.
  std::vector<RecomputeShard> pending_recomputations(StageIndex stage) const;

 private:
  void on(const RunCreated& event);
  void on(const RunResumed& event);
  void on(const MinerRegistered& event);
  void on(const MinerLost& event);
  void on(const MinerReturned& event);
  void on(const LeasesRequested& event);
  void on(const ReceiptsArrived& event);
  void on(const UploadCommitted& event);
  void on(const ShardCommitted& event);
  void on(const ShardRecomputed& event);
  void on(const StateHeld& event);
  void on(const StatePublished& event);
  void on(const CheckpointCommitted& event);
  void on(const CheckpointWritten& event);
  void on(const MinerReported&) {}
  void on(const Ticked& event);
  void on(const Commanded& event);
  void on(const MinerAssigned& event);
  void on(const DrainOrdered& event);
  void on(const SpecChanged& event);
  void on(const StagesOrdered& event);
  void on(const StagesChanged& event);

  void say(std::string text, bool warning = false);
  // orchestrator_miners.cpp
  void begin_incarnation(MinerIndex index, const Registration& registration, bool is_known);
  bool is_news(const MinerRecord& miner, const MergeApplied& applied) const;
  void must_load(MinerRecord& miner, const std::string& reason);
  void hurry(MinerIndex miner);
  // orchestrator_peers.cpp
  void take_place(MinerRecord& miner);
  void peers_changed(MinerIndex miner);
  void resize_neighbourhoods(StageIndex stage, uint32_t changed);
  void set_neighbourhoods(uint32_t count);
  uint64_t peers_version_of(const MinerRecord& miner) const;
  std::vector<Peer> peers_of(const MinerRecord& miner) const;
  // orchestrator_assignment.cpp
  void refresh_needs();
  bool fits_stage(const Registration& registration, StageIndex stage) const;
  std::string misfit_of(const Registration& registration) const;  // empty: some stage fits, and the wanted one
  std::string stalled() const;                                    // why no joiner gets a stage now; empty: they do
  bool has_state(StageIndex stage) const;
  std::vector<PlacedMiner> placed_miners(bool for_moves) const;
  std::vector<StageSituation> situations() const;
  std::optional<StageIndex> stage_for(const Registration& registration, const MinerRecord* before,
                                      std::string* reason) const;
  void enqueue(MinerRecord& miner, const std::string& reason);
  void leave_queue(MinerRecord& miner);
  void place_waiting();
  void consider_moves();
  void move_now(MinerRecord& miner, StageIndex stage, const std::string& reason);
  // orchestrator_commands.cpp
  void advance_restage(bool late);
  void cancel_restage(const std::string& reason);
  // orchestrator.cpp
  bool stage_has_ready(StageIndex stage) const { return ready_count(stage) > 0; }
  uint32_t ready_count(StageIndex stage) const { return index_.stage(stage).ready; }
  void enter(RunPhase phase, TimeMs deadline);
  void advance_phase();
  void begin_checkpoint(RunPhase after);
  void try_write_checkpoint();
  bool stages_settled() const;

  // orchestrator_leases.cpp
  // A head limits itself to max_in_flight; the orchestrator learns a little later what is complete, so it allows more.
  uint32_t lease_limit() const { return 2 * state_.spec.pipeline.max_in_flight; }
  std::string lease_refusal(const MinerRecord& miner) const;
  std::optional<MicrobatchId> next_to_lease() const;
  Lease grant(MicrobatchId id, MinerRecord& head);
  std::vector<MinerIndex> propose_pathway(MicrobatchId id, uint32_t attempt, MinerIndex head, bool* random) const;
  void count_receipt(MinerRecord& miner, const Receipt& receipt);
  void release(MicrobatchId id, OpenMicrobatch& microbatch);
  void stop_waiting_for(const OpenMicrobatch& microbatch, StageIndex stage);
  void note_time(MinerRecord& miner, const Receipt& receipt);
  void expire_leases();

  // orchestrator_merge.cpp
  void consider_merges();
  void start_merge(StageIndex stage, std::set<MinerIndex> invited);
  void freeze_if_complete(StageIndex stage);
  void freeze(StageIndex stage);
  void settle_shards(StageIndex stage);
  void accept_if_settled(StageIndex stage, uint32_t shard);
  void accept(StageIndex stage, uint32_t shard, const Digest& object);
  void recompute(StageIndex stage, uint32_t shard, const char* reason);
  RecomputeShard recomputation_of(StageIndex stage, uint32_t shard) const;
  void complete_merge(StageIndex stage);
  void forget_old_merges(StageRecord& stage);
  void abort_merge(StageIndex stage, const std::string& reason);
  void drop_from_merge(MinerIndex miner, bool restarted);

  OrchestratorState state_;
  OrchestratorIndex index_;
  TimeMs now_ = 0;
  Effects effects_;
  // Of the step under way: stages at an epoch boundary; whether miners came, went or became ready.
  std::set<StageIndex> boundaries_;
  bool members_changed_ = false;
};

}  // namespace tessera::core
