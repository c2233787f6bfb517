// What a miner's report contains that is new, and what it is told. Nothing here changes the state.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

// The attempt at the merge, and how many of its rounds a miner was told of.
uint64_t heard_of(const Merge& merge, size_t rounds) { return uint64_t{merge.first_shard} << 32 | rounds; }

// The next rounds of which every shard is accepted.
void name_sealed(const Merge& merge, const MinerRecord& miner, uint64_t heard, MergeDirective* directive) {
  const size_t each = std::max<size_t>(1, merge.participants.size() / 2);
  size_t round = heard >> 32 == merge.first_shard ? static_cast<uint32_t>(heard) : 0;
  for (; (round + 1) * each <= merge.shards.size() && directive->sealed.size() < kEnoughSealedResults; ++round) {
    const auto first = merge.shards.begin() + static_cast<int64_t>(round * each);
    const auto is_accepted = [](const MergeShard& shard) { return shard.accepted.has_value(); };
    if (!std::all_of(first, first + static_cast<int64_t>(each), is_accepted)) break;
    for (auto shard = first; shard != first + static_cast<int64_t>(each); ++shard) {
      const auto is_own = [&](const std::optional<ShardCopy>& copy) { return copy && copy->miner == miner.index; };
      if (shard->copies.empty() || is_own(shard->copy_a) || is_own(shard->copy_b)) continue;
      const ResultCopy& copy = shard->copies[miner.index % shard->copies.size()];
      directive->sealed.push_back({shard->plan.first_block, shard->plan.block_count, copy.object});
    }
  }
  directive->sealed_heard = heard_of(merge, round);
}

std::optional<MergeDirective> merge_directive(const OrchestratorState& state, const StageSummary& summary,
                                              const MinerRecord& miner, uint64_t sealed_heard) {
  const StageRecord& stage = state.stages[miner.stage];
  if (miner.epoch < stage.epoch) {
    if (stage.disputants.count(miner.index) > 0) return std::nullopt;  // it has applied it, and not as the first to say so
    for (const PastMerge& past : stage.past) {
      if (past.target != miner.epoch + 1) continue;
      MergeDirective directive;
      directive.target = past.target;
      directive.phase = MergePhase::kApply;
      directive.uploads = past.uploads;
      directive.results = past.results;
      directive.outer_learning_rate = past.outer_learning_rate;
      directive.outer_momentum = past.outer_momentum;
      directive.participant = std::find(past.participants.begin(), past.participants.end(), miner.index) !=
                              past.participants.end();
      directive.drop_carry = std::find(past.dropped.begin(), past.dropped.end(), miner.index) != past.dropped.end();
      return directive;
    }
    return std::nullopt;  // too old: it gets a new assignment
  }
  if (!stage.merge) return std::nullopt;
  const Merge& merge = *stage.merge;
  MergeDirective directive;
  directive.target = merge.target;
  directive.phase = merge.phase;
  directive.rounds = merge.upload_rounds();
  if (merge.phase == MergePhase::kSnapshot) {
    if (merge.invited.count(miner.index) == 0) return std::nullopt;
    directive.again = miner.upload_again;
    return directive;
  }
  directive.tasks = open_tasks(state, summary, miner);
  if (summary.owned.count(miner.index) > 0) name_sealed(merge, miner, sealed_heard, &directive);
  if (directive.tasks.empty()) {
    if (directive.sealed.empty()) return std::nullopt;
    return directive;
  }
  for (size_t p = 0; p < merge.participants.size(); ++p) {
    directive.uploads.push_back({merge.uploads.at(merge.participants[p]).object, merge.weights[p]});
  }
  directive.uploads_whole = merge.uploads_are_whole();
  return directive;
}

bool says_more(const Merge& merge, const MinerRecord& miner, const UploadCommit& upload) {
  if (merge.target != upload.target) return false;
  const auto known = merge.uploads.find(miner.index);
  if (known == merge.uploads.end()) {
    return merge.phase == MergePhase::kSnapshot && merge.invited.count(miner.index) > 0 && upload.again == miner.upload_again;
  }
  return upload.whole && !known->second.whole && known->second.object == upload.object;
}

// Replicas at the stage's epoch, other ones for every newcomer.
std::vector<Peer> donors_for(const OrchestratorState& state, const StageSummary& summary, const MinerRecord& newcomer) {
  std::vector<Peer> donors;
  if (summary.current.empty()) return donors;
  auto next = std::next(summary.current.begin(), newcomer.index % summary.current.size());
  for (size_t i = 0; i < summary.current.size() && donors.size() < kMaxDonors; ++i) {
    const MinerRecord& donor = state.miners[*next];
    if (++next == summary.current.end()) next = summary.current.begin();
    if (donor.on_its_way_out()) continue;
    donors.push_back({.miner = donor.index,
                      .node = donor.registration.node,
                      .stage = donor.stage,
                      .address = donor.registration.address,
                      .live = true,
                      .incarnation = donor.registration.incarnation});
  }
  return donors;
}

// What a miner that is not ready can start from: the newest published state from which the merges since then are still
// known, or the run's seed.
std::optional<Assignment> assignment_for(const OrchestratorState& state, const StageSummary& summary, const MinerRecord& miner) {
  const StageRecord& stage = state.stages[miner.stage];
  Assignment assignment;
  assignment.stage = miner.stage;
  if (!stage.published_state.is_zero() && stage.state_at(stage.published_epoch)) {
    assignment.epoch = stage.published_epoch;
    assignment.state = stage.published_state;
    if (stage.published_epoch == stage.epoch) assignment.donors = donors_for(state, summary, miner);
  } else if (miner.must_download || !stage.state_at(0)) {
    return std::nullopt;
  }
  const uint64_t per_step = uint64_t{state.spec.training.microbatches_per_step} * state.spec.pipeline.miners_per_stage;
  assignment.schedule_step = state.done / per_step;
  if (miner.resumed) {
    assignment.local_state = miner.resumed->local_state;
    assignment.schedule_step = miner.resumed->schedule_step;
  }
  return assignment;
}

// One live miner that is at the stage's epoch puts the stage's state into the blob store: the lowest-numbered, and if that is
// late, the next.
bool publishes(const StageRecord& stage, const StageSummary& summary, const MinerRecord& miner) {
  if (stage.state_published || stage.state.is_zero() || summary.current.count(miner.index) == 0) return false;
  return *std::next(summary.current.begin(), stage.publisher_turn % summary.current.size()) == miner.index;
}

}  // namespace

const MinerRecord* Orchestrator::find(const NodeId& node, uint64_t incarnation) const {
  const auto known = state_.by_node.find(node);
  if (known == state_.by_node.end()) return nullptr;
  const MinerRecord& miner = state_.miners[known->second];
  return miner.registration.incarnation == incarnation ? &miner : nullptr;
}

RegisterAnswer Orchestrator::refusal_for(const Registration& registration) const {
  RegisterAnswer answer;
  if (state_.phase == RunPhase::kFinished) {
    answer.refusal = RegisterRefusal::kRunFinished;
    answer.message = fmt::format("run '{}' is finished; join another orchestrator, or resume this run with more training.steps",
                                 state_.spec.name);
  } else if (const auto known = state_.by_node.find(registration.node);
             known != state_.by_node.end() && registration.incarnation != 0 &&
             state_.miners[known->second].retired_incarnation == registration.incarnation) {
    // Its weights, receipts and step count are of the time after the checkpoint.
    answer.refusal = RegisterRefusal::kRunFinished;
    answer.message = "the run was resumed from a checkpoint since this miner joined; start the miner again";
  } else if (registration.address.rfind(':') == std::string::npos || registration.address.size() > 255) {
    answer.refusal = RegisterRefusal::kBadAddress;
    answer.message = fmt::format("advertised address '{}' is not host:port; set 'advertise' in the miner's YAML",
                                 registration.address.substr(0, 255));
  } else if (registration.wanted_stage && *registration.wanted_stage >= state_.stages.size()) {
    answer.refusal = RegisterRefusal::kBadAddress;
    answer.message = fmt::format("wanted stage {} of a run with {} stages", *registration.wanted_stage, state_.stages.size());
  } else if (state_.miners.size() >= kMaxMiners && state_.by_node.count(registration.node) == 0 &&
             forgettable(1).empty()) {
    answer.refusal = RegisterRefusal::kFull;
    answer.message = fmt::format("this orchestrator has {} miners already", kMaxMiners);
  } else if (const std::string why = misfit_of(registration); !why.empty()) {
    answer.refusal = RegisterRefusal::kNotFitting;
    answer.message = why;
  }
  return answer;
}

std::vector<ShardCommit> Orchestrator::owed_commits(const SyncRequest& request) const {
  std::vector<ShardCommit> owed;
  const MinerRecord& miner = state_.miners[request.miner];
  const StageRecord& stage = state_.stages[miner.stage];
  if (request.shards.empty() || !stage.merge || stage.merge->phase != MergePhase::kReduce) return owed;
  std::set<uint32_t> open;
  for (const ShardTask& task : open_tasks(state_, index_.stage(miner.stage), miner)) open.insert(task.shard);
  for (const ShardCommit& commit : request.shards) {
    if (!commit.unavailable.is_zero() && !stage.merge->uploads_are_whole()) continue;  // it says so again
    if (commit.target == stage.merge->target && open.erase(commit.shard) > 0) owed.push_back(commit);
  }
  return owed;
}

std::vector<Event> Orchestrator::news_in(const SyncRequest& request) const {
  std::vector<Event> news;
  const MinerRecord& miner = state_.miners[request.miner];
  const StageRecord& stage = state_.stages[miner.stage];
  if (request.status.phase == MinerPhase::kDraining && request.status.in_flight == 0) {
    if (miner.live) news.emplace_back(MinerLost{miner.index, "left in an orderly way"});
  } else if (!miner.live) {
    news.emplace_back(MinerReturned{miner.index});
  }
  if (request.applied && is_news(miner, *request.applied)) news.emplace_back(StateHeld{miner.index, *request.applied});
  ReceiptsArrived receipts{miner.index, {}};
  const auto& bad = request.bad_receipts;
  uint64_t next = miner.receipts_through + 1;
  for (const Receipt& receipt : request.receipts) {
    if (receipt.sequence != next) continue;
    if (std::find(bad.begin(), bad.end(), receipt.sequence) != bad.end()) {
      receipts.rejected.push_back(receipt.sequence);
    } else {
      receipts.receipts.push_back(receipt);
    }
    ++next;
  }
  if (next > miner.receipts_through + 1) news.emplace_back(std::move(receipts));
  if (request.segment && audits().is_news(miner.index, *request.segment, next - 1)) {
    news.emplace_back(SegmentCommitted{miner.index, *request.segment});
  }
  if (request.upload && stage.merge && says_more(*stage.merge, miner, *request.upload)) {
    news.emplace_back(UploadCommitted{miner.index, *request.upload});
  }
  for (ShardCommit& commit : owed_commits(request)) {
    news.emplace_back(ShardCommitted{miner.index, std::move(commit), miner.stage, state_.resumes});
  }
  for (const UnreadableResult& unreadable : request.unreadable_results) {
    if (!may_recheck(miner, unreadable)) continue;
    news.emplace_back(ResultUnreadable{miner.index, miner.stage, unreadable.target, unreadable.first_block});
  }
  if (request.published_state && miner.placed && miner.ready && !stage.state_published && request.status.epoch == stage.epoch &&
      *request.published_state == stage.state) {
    news.emplace_back(StatePublished{miner.index, stage.epoch, stage.state});
  }
  if (request.checkpoint && state_.phase == RunPhase::kCheckpointing && request.checkpoint->id == state_.checkpoint_id &&
      !miner.checkpoint && miner.placed && miner.ready && miner.epoch == stage.epoch) {
    news.emplace_back(CheckpointCommitted{miner.index, *request.checkpoint});
  }
  return news;
}

std::optional<Event> Orchestrator::lease_request_in(const SyncRequest& request) const {
  const MinerRecord& miner = state_.miners[request.miner];
  if (request.lease_request <= miner.lease_request || !lease_refusal(miner).empty() || miner.in_flight >= lease_limit()) {
    return std::nullopt;
  }
  const std::optional<MicrobatchId> next = next_to_lease();
  if (!next || (request.leases_wanted == 0 && !may_take_over(*next, miner))) return std::nullopt;
  return LeasesRequested{miner.index, request.lease_request, request.leases_wanted};
}

SyncAnswer Orchestrator::answer_for(const SyncRequest& request) const {
  const MinerRecord& miner = state_.miners[request.miner];
  const StageRecord& stage = state_.stages[miner.stage];
  SyncAnswer answer;
  answer.phase = state_.phase;
  answer.receipts_acknowledged = miner.receipts_through;
  answer.leave = state_.phase == RunPhase::kFinished || state_.phase == RunPhase::kStopped;
  answer.drain = miner.drain;
  answer.segment_known = audits().known_segment(miner.index);
  answer.spec_version = state_.spec_version;
  if (request.spec_version != state_.spec_version) answer.run_spec = encode(state_.spec);
  if (!miner.placed) {
    answer.leave = state_.phase == RunPhase::kFinished;
    answer.reason = fmt::format("place {} of {} in the queue: {}", queue_position(miner), state_.waiting.size(), miner.why);
    return answer;
  }
  answer.peers_version = peers_version_of(miner);
  if (request.peers_version != answer.peers_version) answer.peers = peers_of(miner);
  // Only one that holds its stage can be told to leave it: a process that was told of none yet would load the other at once.
  if (miner.ready && miner.assigned_stage && *miner.assigned_stage != miner.stage) {
    answer.assignment.emplace().stage = *miner.assigned_stage;
    answer.reason = miner.why;
  } else if (!miner.ready) {
    answer.assignment = assignment_for(state_, index_.stage(miner.stage), miner);
    answer.reason = answer.assignment ? "load the stage" : "waiting until a replica has published the stage's state";
  }
  if (!miner.ready) return answer;
  if (request.lease_request == miner.lease_request) {
    answer.leases = miner.granted;
    answer.lease_request = miner.lease_request;
  }
  if (request.leases_wanted > 0 && answer.leases.empty()) answer.reason = lease_refusal(miner);
  answer.merge = merge_directive(state_, index_.stage(miner.stage), miner, request.sealed_heard);
  if (request.upload && answer.reason.empty() && stage.merge && stage.merge->phase == MergePhase::kReduce &&
      stage.merge->target == request.upload->target && stage.merge->uploads.count(miner.index) == 0) {
    answer.reason = fmt::format("the upload for merge {} came after its grace; go on training: the work is in your masters and "
                                "counts in the next merge", request.upload->target);
  }
  answer.publish_state = publishes(stage, index_.stage(miner.stage), miner);
  // One that is behind first catches up: its local state must belong to the stage's.
  if (state_.phase == RunPhase::kCheckpointing && !miner.checkpoint && miner.epoch == stage.epoch) {
    answer.checkpoint = state_.checkpoint_id;
  }
  return answer;
}

}  // namespace tessera::core
