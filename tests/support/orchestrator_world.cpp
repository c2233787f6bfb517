#include "support/orchestrator_world.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/small_run.h"
#include "tessera/core/invariants.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {

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

OrchestratorWorld::~OrchestratorWorld() { EXPECT_EQ(core::dump(replayed().state()), core::dump(state())); }

void OrchestratorWorld::step(const core::Event& event) {
  journal_.push_back({now_, core::event_name(event), core::event_body(event)});
  events.push_back(event);
  core::Effects effects = core_.step(now_, event);
  for (core::RecomputeShard& shard : effects.recompute) recomputations.push_back(std::move(shard));
  if (effects.checkpoint) checkpoints.push_back(effects.checkpoint->id);
  for (const core::Decision& decision : effects.decisions) decisions_.push_back(decision.text);
  ASSERT_EQ(core::broken_invariant(core_), "")
      << "after " << journal_.back().name << " number " << journal_.size();
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

void OrchestratorWorld::restart() {
  core_ = replayed();
  recomputations.clear();
  checkpoints.clear();
  for (StageIndex s = 0; s < state().stages.size(); ++s) {
    if (!state().stages[s].merge) continue;
    for (core::RecomputeShard& shard : core_.pending_recomputations(s))
      recomputations.push_back(std::move(shard));
  }
  if (state().checkpoint_writing) checkpoints.push_back(state().checkpoint_id);
}

bool OrchestratorWorld::said(const std::string& part) const {
  for (const std::string& decision : decisions_) {
    if (decision.find(part) != std::string::npos) return true;
  }
  return false;
}

}  // namespace tessera::test
