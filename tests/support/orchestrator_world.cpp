#include "support/orchestrator_world.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "support/small_run.h"
#include "tessera/core/invariants.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;

constexpr size_t kSnapshotEvents = 37;

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
  if (after.miners.next() < before.miners.next()) return "a number is given again";
  if (after.spec_version < before.spec_version) return "the specification's version goes back";
  if (after.peers_version < before.peers_version) return "the peer table's version goes back";
  for (MinerIndex m = 0; m < before.miners.next(); ++m) {
    if (!before.miners.has(m)) continue;
    if (!after.miners.has(m)) {
      if (before.miners[m].live) return "a live miner is forgotten";
      continue;
    }
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

OrchestratorWorld::OrchestratorWorld(const core::RunSpec& spec, uint64_t secret) {
  core::RunCreated created;
  created.run_id = "0123456789abcdef";
  created.run_spec = encode(spec);
  created.data_plan = encode(small_data());
  created.secret = secret;
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s)
    created.stage_values.push_back(core::stage_value_count(spec, s));
  step(created);
}

OrchestratorWorld::~OrchestratorWorld() {
  EXPECT_EQ(core::dump(replayed().state()), core::dump(state()));
  EXPECT_EQ(core::dump(replayed_from_snapshot().state()), core::dump(state()));
}

void OrchestratorWorld::step(const core::Event& event) {
  journal_.push_back({now_, core::event_name(event), core::event_body(event)});
  events.push_back(event);
  event_times.push_back(now_);
  const OrchestratorState before = state();
  core::Effects effects = core_.step(now_, event);
  ASSERT_EQ(broken_transition(before, event, state()), "")
      << "at " << journal_.back().name << " number " << journal_.size();
  for (core::RecomputeShard& shard : effects.recompute) recomputations.push_back(std::move(shard));
  for (core::RemakeState& wanted : effects.remake) remakes.push_back(std::move(wanted));
  for (core::RecheckResult& result : effects.recheck) rechecks.push_back(std::move(result));
  if (effects.checkpoint) checkpoints.push_back(effects.checkpoint->id);
  if (effects.restage) restages.push_back(effects.restage->id);
  for (const core::Decision& decision : effects.decisions) decisions_.push_back(decision.text);
  ASSERT_EQ(core::broken_invariant(core_), "")
      << "after " << journal_.back().name << " number " << journal_.size();
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
  for (const core::Event& event : core_.news_in(request)) {
    step(event);
    if (!crashes_after || !crashes_after(event)) continue;
    restart();
    return false;
  }
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
  remakes.clear();
  rechecks.clear();
  checkpoints.clear();
  for (StageIndex s = 0; s < state().stages.size(); ++s) {
    if (std::optional<core::RemakeState> wanted = core_.pending_remake(s)) remakes.push_back(*std::move(wanted));
    for (core::RecheckResult& result : core_.pending_rechecks(s)) rechecks.push_back(std::move(result));
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
