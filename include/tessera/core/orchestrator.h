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
#include <string_view>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/status.h"
#include "tessera/core/assignment.h"
#include "tessera/core/butterfly.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/events.h"
#include "tessera/core/orchestrator_index.h"
#include "tessera/core/orchestrator_state.h"
#include "tessera/core/receipt_watch.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

// ---- what the shell does after a step -------------------------------------------------------------------------------

struct RecomputeShard {
  StageIndex stage = 0;
  Epoch target = 0;
  uint32_t shard = 0;  // its number, as in ShardTask
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  std::vector<UploadRef> uploads;
  Digest token;                // of its own copy
  uint64_t stage_values = 0;
  MergeSpec merge;             // formats, blocks, robustness
  uint64_t rounding_key = 0;
  uint32_t resumes = 0;        // of the run before it
};
// A stage's state from the one before its newest merge.
struct RemakeState {
  StageIndex stage = 0;
  uint64_t stage_values = 0;
  PastMerge past;
  MergeSpec merge;
  uint64_t rounding_key = 0;
};
// A shard of a complete merge: whether a copy can be read, and else what it is.
struct RecheckResult {
  StageIndex stage = 0;
  Epoch target = 0;
  ShardResult result;
  std::vector<UploadRef> uploads;
  uint64_t stage_values = 0;
  MergeSpec merge;
  uint64_t rounding_key = 0;
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
inline constexpr size_t kMaxMiners = 100000;  // whose records are kept

// Its record is gone; its key is as good as new.
struct ForgottenMiner {
  MinerIndex miner = kNoMiner;
  NodeId node;
};

struct Effects {
  std::vector<RecomputeShard> recompute;
  std::vector<RemakeState> remake;
  std::vector<RecheckResult> recheck;
  std::optional<WriteCheckpoint> checkpoint;
  std::optional<ChangeStages> restage;
  std::vector<Decision> decisions;
  std::vector<ForgottenMiner> forgotten;
  std::vector<Event> publish;  // to be stepped next, in the same transaction: secrets whose time is over
};

// The shards of the running merge of its stage that this miner owns and has not committed.
std::vector<ShardTask> open_tasks(const OrchestratorState& state, const StageSummary& summary, const MinerRecord& miner);

class Orchestrator {
 public:
  // `now` must not decrease from call to call.
  Effects step(TimeMs now, const Event& event);

  const OrchestratorState& state() const { return state_; }
  TimeMs now() const { return now_; }  // of the last step
  const OrchestratorIndex& index() const { return index_; }

  // The whole state as bytes, and back: a snapshot and the events after it are as good as all events. False: these are not
  // bytes of a state of exactly this version, which changes with every field of it.
  std::string snapshot() const;
  bool load(std::string_view snapshot);

  // True when a Ticked at `now` would change something; the shell steps one then.
  bool due(TimeMs now) const;

  // ---- questions a shell asks before it makes an event; none changes anything ----
  // The miner of a registered, same incarnation; null otherwise.
  const MinerRecord* find(const NodeId& node, uint64_t incarnation) const;
  RegisterAnswer refusal_for(const Registration& registration) const;  // kNone: would be admitted
  // The events that are news in a report, in order (receipts already checked by the shell).
  std::vector<Event> news_in(const SyncRequest& request) const;
  // Of a report's commitments to shards those that are news, each once: a shell checks only their signatures.
  std::vector<ShardCommit> owed_commits(const SyncRequest& request) const;
  // The request for leases in a report, if it can be met now: asked after the report's other news was stepped, which may
  // have made room.
  std::optional<Event> lease_request_in(const SyncRequest& request) const;
  SyncAnswer answer_for(const SyncRequest& request) const;
  // The same for a validator's report; the audit that it may have now is asked for after its news were stepped.
  std::vector<Event> news_in(const NodeId& validator, const ValidatorReport& report) const;
  std::optional<Event> audit_request_in(const NodeId& validator, const ValidatorReport& report) const;
  ValidatorOrders orders_for(const NodeId& validator, const ValidatorReport& report) const;
  // Orders: the event to step, or why not. An order that changes nothing gives no event.
  StatusOr<std::optional<Event>> assign_order(MinerIndex miner, StageIndex stage, bool force) const;
  StatusOr<std::optional<Event>> drain_order(MinerIndex miner) const;
  StatusOr<std::optional<Event>> spec_order(const std::string& key, const std::string& value) const;
  StatusOr<std::optional<Event>> stages_order(const std::vector<uint32_t>& stage_layers) const;
  // Place of a waiting miner, from 1; and why it waits.
  size_t queue_position(const MinerRecord& miner) const;
  // The recomputations under way: after a replay the shell begins them again.
  std::vector<RecomputeShard> pending_recomputations(StageIndex stage) const;
  std::optional<RemakeState> pending_remake(StageIndex stage) const;
  std::vector<RecheckResult> pending_rechecks(StageIndex stage) const;

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
  void on(const ResultUnreadable& event);
  void on(const ResultRechecked& event);
  void on(const StateHeld& event);
  void on(const StatePublished& event);
  void on(const StateRemade& event);
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
  void on(const VerdictRecorded& event);
  void on(const RandomLeasesPublished&) {}
  void on(const PairingsPublished&) {}
  void on(const SecretUnsealed&) {}
  void on(const SegmentCommitted& event);
  void on(const ValidatorJoined& event);
  void on(const ValidatorLost& event);
  void on(const AuditLeased& event);
  void on(const AuditFinished& event);

  void say(std::string text, bool warning = false);
  // orchestrator_audit.cpp
  AuditBoard audits();
  const AuditBoard audits() const;
  void say(const std::vector<AuditNote>& notes);
  void forget_audits();
  void unseal_audit(uint64_t audit);
  void judge_auditable(const MinerRecord& miner);
  bool may_snapshot(const MinerRecord& miner) const;
  void audit_receipt(const MinerRecord& miner, const Receipt& receipt);
  void audit_upload(const MinerRecord& miner, const UploadCommit& upload);
  // orchestrator_miners.cpp
  bool is_in_use(const MinerRecord& miner) const;
  std::vector<MinerIndex> forgettable(size_t most) const;
  void forget_gone();
  void begin_incarnation(MinerIndex index, const Registration& registration, bool is_known);
  bool is_news(const MinerRecord& miner, const MergeApplied& applied) const;
  void must_load(MinerRecord& miner, const std::string& reason);
  bool dispute(StageIndex stage, MinerRecord& miner);
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
  void note_poorest();
  void consider_moves();
  bool may_move_someone() const;
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
  bool publisher_is_late(StageIndex stage, TimeMs now) const;
  bool stages_settled() const;

  // orchestrator_leases.cpp
  // A head limits itself to max_in_flight; the orchestrator learns a little later what is complete, so it allows more.
  uint32_t lease_limit() const { return 2 * state_.spec.pipeline.max_in_flight; }
  std::string lease_refusal(const MinerRecord& miner) const;
  std::optional<MicrobatchId> next_to_lease() const;
  bool may_take_over(MicrobatchId id, const MinerRecord& head) const;
  Lease grant(MicrobatchId id, MinerRecord& head);
  uint32_t lease_lifetime_ms() const;
  bool may_repair(const OpenMicrobatch& microbatch, const MinerRecord& head) const;
  std::vector<MinerIndex> mended_pathway(const OpenMicrobatch& microbatch, MinerIndex head) const;
  std::vector<MinerIndex> propose_pathway(MicrobatchId id, uint32_t attempt, MinerIndex head, bool* random) const;
  void confirm_gradients(OpenMicrobatch& open, const Receipt& receipt);
  void count_receipt(MinerRecord& miner, const Receipt& receipt);
  void watch_receipt(const MinerRecord& miner, const Receipt& receipt);
  void release(MicrobatchId id, OpenMicrobatch& microbatch);
  void stop_waiting_for(const OpenMicrobatch& microbatch, StageIndex stage);
  void note_time(MinerRecord& miner, const Receipt& receipt);
  void expire_leases();

  // orchestrator_merge.cpp: the course of a merge
  void consider_merges();
  void start_merge(StageIndex stage, std::set<MinerIndex> invited);
  void freeze_if_complete(StageIndex stage);
  void note_whole(StageIndex stage, MinerIndex miner);
  void leave_out_unfinished(StageIndex stage, const std::string& reason);
  void forgive_spoilers(StageIndex stage);
  void complete_merge(StageIndex stage);
  void retire_merge(StageIndex stage);
  void unseal_merge(StageIndex stage);
  void leave_behind(StageIndex stage);
  void forget_old_merges(StageRecord& stage);
  void abort_merge(StageIndex stage, const std::string& reason);
  void fail_merge(StageIndex stage, const std::string& reason);
  void drop_from_merge(MinerIndex miner, bool restarted);
  // orchestrator_manifest.cpp: which uploads count
  std::map<MinerIndex, uint32_t> manifest_counts(StageIndex stage);
  size_t most_uploads(StageIndex stage) const;
  void freeze(StageIndex stage);
  void plan_shards(StageIndex stage);
  bool verify_for_gate(StageIndex stage);
  bool gate(StageIndex stage);
  // orchestrator_results.cpp: shards of complete merges that a replica can't have
  bool may_recheck(const MinerRecord& miner, const UnreadableResult& unreadable) const;
  PastMerge* past_merge(StageIndex stage, Epoch target);
  RecheckResult recheck_of(StageIndex stage, const PastMerge& past, const ShardResult& result) const;
  void judge_agreed(StageIndex stage, PastMerge& past, const ShardResult& result, const Digest& expected);
  // orchestrator_shards.cpp: the decision on each shard
  void settle_shards(StageIndex stage);
  void accept_if_settled(StageIndex stage, uint32_t shard);
  void accept(StageIndex stage, uint32_t shard, const Digest& result, const std::vector<UploadMeasure>& measures,
              std::optional<ResultCopy> recomputed);
  void recompute(StageIndex stage, uint32_t shard, const char* reason);
  bool replace_owner(StageIndex stage, uint32_t shard, bool second);
  void abort_unreadable(StageIndex stage, uint32_t shard, const std::vector<Digest>& unreadable);
  void judge(StageIndex stage, uint32_t shard, const ShardCopy& copy, const Digest& expected);
  void record_verdict(StageIndex stage, MergeVerdict verdict);
  RecomputeShard recomputation_of(StageIndex stage, uint32_t shard) const;

  // orchestrator_ledger.cpp
  void note_random_lease(MicrobatchId id, const OpenMicrobatch& microbatch);
  void publish_pairings(StageIndex stage, const Merge& merge);
  void publish_random_leases();
  void publish_if_due();

  OrchestratorState state_;
  OrchestratorIndex index_;
  ReceiptWatch watch_;
  TimeMs now_ = 0;
  Effects effects_;
  // Of the step under way: stages at an epoch boundary; whether miners came, went or became ready.
  std::set<StageIndex> boundaries_;
  bool members_changed_ = false;
};

}  // namespace tessera::core
