#include "support/orchestrator_world.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/small_run.h"
#include "support/state_dump.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;

constexpr size_t kSnapshotEvents = 37;

std::string broken_work(const OrchestratorState& state) {
  std::map<MinerIndex, uint32_t> in_flight;
  const uint64_t all = (uint64_t{1} << state.stages.size()) - 1;
  for (const auto& [id, open] : state.open) {
    if (id >= state.next_microbatch)
      return fmt::format("microbatch {} is open and was never leased", id);
    if (open.counted_stages >= all)
      return fmt::format("microbatch {} is complete and still open", id);
    if (open.leased == (state.reissue.count(id) > 0))
      return fmt::format("microbatch {} is leased and waits, or neither", id);
    if (!open.leased) continue;
    for (StageIndex s = 0; s < open.pathway.size(); ++s) {
      if ((open.counted_stages >> s & 1) == 0) in_flight[open.pathway[s]]++;
    }
  }
  for (const MicrobatchId id : state.reissue) {
    if (state.open.count(id) == 0) return fmt::format("microbatch {} waits and is not open", id);
  }
  if (state.done + state.open.size() != state.next_microbatch) {
    return fmt::format("{} done and {} open are not the {} leased", state.done, state.open.size(),
                       state.next_microbatch);
  }
  for (const core::MinerRecord& miner : state.miners) {
    if (miner.in_flight != in_flight[miner.index]) {
      return fmt::format("miner {} counts {} in flight, not {}", miner.index, miner.in_flight,
                         in_flight[miner.index]);
    }
  }
  return "";
}

std::string broken_merge(const OrchestratorState& state, const core::StageRecord& stage) {
  const core::Merge& merge = *stage.merge;
  if (merge.target != stage.epoch + 1) return "a merge skips an epoch";
  for (const auto& [miner, upload] : merge.uploads) {
    if (upload.target != merge.target) return "an upload is of another merge";
  }
  if (merge.phase == core::MergePhase::kSnapshot) {
    if (merge.invited.empty()) return "a merge waits for nobody";
    return merge.participants.empty() && merge.shards.empty() ? "" : "a manifest before the freeze";
  }
  const size_t n = merge.participants.size();
  if (n == 0 || merge.counts.size() != n || merge.weights.size() != n)
    return "a manifest of uneven lists";
  if (merge.shards.size() != (n == 1 ? 1 : n * (n - 1) / 2))
    return "a plan with a wrong number of shards";
  double sum = 0;
  for (const float weight : merge.weights) sum += weight;
  if (std::abs(sum - 1) > 1e-5) return "weights do not add up to 1";
  uint64_t next = 0;
  for (const core::MergeShard& shard : merge.shards) {
    if (shard.plan.first_block != next) return "the shards do not tile the stage";
    next += shard.plan.block_count;
  }
  const uint64_t block = state.spec.merge.block_values;
  return next == (stage.values + block - 1) / block ? "" : "the shards do not cover the stage";
}

std::string broken_stage(const OrchestratorState& state, const core::StageRecord& stage) {
  const size_t needed =
      std::max<size_t>(state.spec.merge.max_staleness, stage.epoch - stage.published_epoch);
  if (stage.past.size() > std::min<size_t>(needed, 64)) return "too many past merges are kept";
  for (size_t i = 0; i < stage.past.size(); ++i) {
    if (stage.past[i].target != stage.epoch - (stage.past.size() - 1 - i))
      return "past merges are not consecutive";
  }
  if (stage.state_published &&
      (stage.published_epoch != stage.epoch || stage.published_state != stage.state)) {
    return "the published state is not the stage's";
  }
  return stage.merge ? broken_merge(state, stage) : "";
}

std::string broken_miner(const OrchestratorState& state, const core::MinerRecord& miner) {
  const auto known = state.by_node.find(miner.registration.node);
  if (known == state.by_node.end() || known->second != miner.index)
    return "it is not found by its key";
  if (miner.ready && miner.epoch > state.stages[miner.stage].epoch)
    return "it is ahead of its stage";
  if (miner.ready && !state.stages[miner.stage].state_at(miner.epoch))
    return "it is ready and can't catch up";
  if (miner.ready && miner.must_download) return "it is ready and must load";
  const auto waits = std::count(state.waiting.begin(), state.waiting.end(), miner.index);
  if (miner.placed && (waits != 0 || miner.ticket != 0)) return "it has a stage and waits for one";
  if (waits != (miner.ticket > 0 ? 1 : 0)) return "it is in the queue without a ticket, or the other way round";
  if (!miner.placed && (miner.ready || miner.assigned_stage)) return "it has no stage and is ready";
  if (miner.placed && state.stages[miner.stage].need_cpu_bytes > 0 && miner.registration.device == "cpu" &&
      miner.registration.memory_bytes > 0 && !state.restage &&
      miner.registration.memory_bytes < state.stages[miner.stage].need_cpu_bytes)
    return "its stage does not fit its memory";
  return "";
}

}  // namespace

std::string broken_invariant(const OrchestratorState& state) {
  if (std::string broken = broken_work(state); !broken.empty()) return broken;
  for (size_t s = 0; s < state.stages.size(); ++s) {
    const std::string broken = broken_stage(state, state.stages[s]);
    if (!broken.empty()) return fmt::format("stage {}: {}", s, broken);
  }
  for (const core::MinerRecord& miner : state.miners) {
    const std::string broken = broken_miner(state, miner);
    if (!broken.empty()) return fmt::format("miner {}: {}", miner.index, broken);
  }
  if (state.checkpoint_writing && state.phase != core::RunPhase::kCheckpointing)
    return "a checkpoint is written aside";
  return "";
}

namespace {

size_t position(const OrchestratorState& state, MinerIndex miner) {
  return static_cast<size_t>(std::find(state.waiting.begin(), state.waiting.end(), miner) -
                             state.waiting.begin());
}

bool stalled_for_joiners(const OrchestratorState& state) {
  return state.restage || state.phase == core::RunPhase::kPaused || state.phase == core::RunPhase::kStopped ||
         state.phase == core::RunPhase::kMerging || state.phase == core::RunPhase::kFinished;
}

std::string broken_miner_step(const OrchestratorState& before, const core::Event& event,
                              const OrchestratorState& after, MinerIndex index) {
  const core::MinerRecord& was = before.miners[index];
  const core::MinerRecord& is = after.miners[index];
  const bool new_process = was.registration.incarnation != is.registration.incarnation;
  const bool by_order = std::holds_alternative<core::MinerAssigned>(event);
  if (!new_process && is.receipts_through < was.receipts_through) return "its receipts go back";
  if (was.placed && is.placed && !new_process && was.stage != is.stage) return "its stage changed under it";
  if (was.placed && !is.placed && !new_process) return "it lost its stage";
  if (!was.placed && is.placed && !by_order && stalled_for_joiners(after)) return "a stalled run got it";
  if (was.ticket > 0 && is.ticket == was.ticket && position(after, index) > position(before, index)) {
    return "its place in the queue went back";
  }
  if (!was.assigned_stage && is.assigned_stage && *is.assigned_stage != is.stage && !was.pending_stage && !by_order) {
    const bool others = std::any_of(after.miners.begin(), after.miners.end(), [&](const core::MinerRecord& other) {
      return other.index != index && other.placed && other.live && other.ready && other.stage == is.stage && !other.assigned_stage;
    });
    if (!others) return "rebalancing emptied its stage";
    if (is.pinned || is.registration.wanted_stage) return "rebalancing moved a pinned miner";
  }
  return "";
}

}  // namespace

std::string broken_transition(const OrchestratorState& before, const core::Event& event,
                              const OrchestratorState& after) {
  if (!before.created) return "";
  if (after.miners.size() < before.miners.size()) return "a miner is forgotten";
  if (after.spec_version < before.spec_version) return "the specification's version goes back";
  if (after.peers_version < before.peers_version) return "the peer table's version goes back";
  for (MinerIndex m = 0; m < before.miners.size(); ++m) {
    if (std::holds_alternative<core::RunResumed>(event)) break;
    const std::string broken = broken_miner_step(before, event, after, m);
    if (!broken.empty()) return fmt::format("miner {}: {}", m, broken);
  }
  if (std::holds_alternative<core::RunResumed>(event)) return "";
  if (after.done < before.done || after.next_microbatch < before.next_microbatch) return "work is forgotten";
  for (size_t s = 0; s < before.stages.size(); ++s) {
    if (after.stages[s].epoch < before.stages[s].epoch) return "an epoch goes back";
    if (after.stages[s].epoch > before.stages[s].epoch + 1) return "an epoch is skipped";
  }
  return "";
}

OrchestratorWorld::OrchestratorWorld(const core::RunSpec& spec) {
  core::RunCreated created;
  created.run_id = "0123456789abcdef";
  created.run_spec = encode(spec);
  created.data_plan = encode(small_data());
  created.secret = 7;
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s)
    created.stage_values.push_back(core::stage_value_count(spec, s));
  step(created);
}

OrchestratorWorld::~OrchestratorWorld() {
  EXPECT_EQ(dump(replayed().state()), dump(state()));
  EXPECT_EQ(dump(replayed_from_snapshot().state()), dump(state()));
}

void OrchestratorWorld::step(const core::Event& event) {
  journal_.push_back({now_, core::event_name(event), core::event_body(event)});
  events.push_back(event);
  const OrchestratorState before = state();
  core::Effects effects = core_.step(now_, event);
  ASSERT_EQ(broken_transition(before, event, state()), "")
      << "at " << journal_.back().name << " number " << journal_.size();
  for (core::RecomputeShard& shard : effects.recompute) recomputations.push_back(std::move(shard));
  if (effects.checkpoint) checkpoints.push_back(effects.checkpoint->id);
  if (effects.restage) restages.push_back(effects.restage->id);
  for (const core::Decision& decision : effects.decisions) decisions_.push_back(decision.text);
  ASSERT_EQ(broken_invariant(state()), "")
      << "after " << journal_.back().name << " number " << journal_.size();
  core::OrchestratorIndex index;
  index.rebuild(state());
  ASSERT_TRUE(index == core_.index())
      << "the index is not the state's after " << journal_.back().name << " number "
      << journal_.size() << ": an indexed change was not announced";
  for (const core::Event& secret : effects.publish) step(secret);
  if (journal_.size() % kSnapshotEvents == 1) {
    snapshot_ = core_.snapshot();
    snapshot_after_ = journal_.size();
  }
}

void OrchestratorWorld::pass(TimeMs ms) {
  now_ += ms;
  if (core_.due(now_)) step(core::Ticked{});
}

bool OrchestratorWorld::sync(const NodeId& node, core::SyncRequest request,
                             core::SyncAnswer* answer) {
  const core::MinerRecord* known = core_.find(node, request.incarnation);
  if (known == nullptr) return false;
  request.miner = known->index;
  for (const core::Event& event : core_.news_in(request)) step(event);
  if (const std::optional<core::Event> leases = core_.lease_request_in(request)) step(*leases);
  *answer = core_.answer_for(request);
  return true;
}

core::RegisterAnswer OrchestratorWorld::join(const core::Registration& registration) {
  core::RegisterAnswer answer = core_.refusal_for(registration);
  if (answer.refusal != core::RegisterRefusal::kNone) return answer;
  step(core::MinerRegistered{registration});
  answer.miner = state().by_node.at(registration.node);
  answer.run_id = state().run_id;
  return answer;
}

core::Orchestrator OrchestratorWorld::replayed() const {
  core::Orchestrator again;
  for (const Record& record : journal_) {
    const std::optional<core::Event> event = core::decode_event(record.name, record.body);
    TESSERA_CHECK(event.has_value());
    again.step(record.time, *event);
  }
  return again;
}

core::Orchestrator OrchestratorWorld::replayed_from_snapshot() const {
  core::Orchestrator again;
  TESSERA_CHECK(again.load(snapshot_));
  for (size_t i = snapshot_after_; i < journal_.size(); ++i) {
    const std::optional<core::Event> event = core::decode_event(journal_[i].name, journal_[i].body);
    TESSERA_CHECK(event.has_value());
    again.step(journal_[i].time, *event);
  }
  return again;
}

void OrchestratorWorld::restart() {
  core_ = replayed_from_snapshot();
  recomputations.clear();
  checkpoints.clear();
  for (StageIndex s = 0; s < state().stages.size(); ++s) {
    if (!state().stages[s].merge) continue;
    for (core::RecomputeShard& shard : core_.pending_recomputations(s))
      recomputations.push_back(std::move(shard));
  }
  if (state().checkpoint_writing) checkpoints.push_back(state().checkpoint_id);
  restages.clear();
  if (state().restage && state().restage->writing) restages.push_back(state().restage->id);
}

bool OrchestratorWorld::said(const std::string& part) const {
  for (const std::string& decision : decisions_) {
    if (decision.find(part) != std::string::npos) return true;
  }
  return false;
}

}  // namespace tessera::test
