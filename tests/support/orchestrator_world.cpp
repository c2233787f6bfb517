#include "support/orchestrator_world.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "support/small_run.h"
#include "support/state_dump.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::OrchestratorState;

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

OrchestratorWorld::~OrchestratorWorld() { EXPECT_EQ(dump(replayed().state()), dump(state())); }

void OrchestratorWorld::step(const core::Event& event) {
  journal_.push_back({now_, core::event_name(event), core::event_body(event)});
  events.push_back(event);
  core::Effects effects = core_.step(now_, event);
  for (core::RecomputeShard& shard : effects.recompute) recomputations.push_back(std::move(shard));
  if (effects.checkpoint) checkpoints.push_back(effects.checkpoint->id);
  for (const core::Decision& decision : effects.decisions) decisions_.push_back(decision.text);
  ASSERT_EQ(broken_invariant(state()), "")
      << "after " << journal_.back().name << " number " << journal_.size();
  core::OrchestratorIndex index;
  index.rebuild(state());
  ASSERT_TRUE(index == core_.index())
      << "the index is not the state's after " << journal_.back().name << " number "
      << journal_.size() << ": an indexed change was not announced";
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
