// Verdicts, and the publication of what was secret: pairings when their merge is over, random pathways at the head stage's
// next merge, when whoever knows them can change nothing any more.
#include <fmt/format.h>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr size_t kUnpublishedLimit = 4096;      // published earlier when so many wait: the entry and the state stay small
constexpr size_t kPairingsOfAnEntry = 16384;   // a large merge takes several entries

}  // namespace

void Orchestrator::on(const VerdictRecorded& event) {
  const Verdict& verdict = event.verdict;
  if (!state_.miners.has(verdict.miner)) return;
  if (voids_epoch(verdict)) state_.miners[verdict.miner].failed_verdicts++;
  say(fmt::format("verdict on miner {}, stage {}, epoch {}: {} {}: {}", verdict.miner, verdict.stage, verdict.epoch,
                  name_of(verdict.kind), verdict.passed ? "passed" : "failed", verdict.reason), !verdict.passed);
}

void Orchestrator::note_random_lease(MicrobatchId id, const OpenMicrobatch& microbatch) {
  if (!microbatch.random_pathway) return;
  state_.unpublished.push_back({id, microbatch.attempt, microbatch.pathway});
}

void Orchestrator::publish_pairings(StageIndex stage, const Merge& merge) {
  PairingsPublished published{.stage = stage, .target = merge.target, .pairings = {}};
  for (uint32_t i = 0; i < merge.shards.size(); ++i) {
    if (published.pairings.size() == kPairingsOfAnEntry) {
      effects_.publish.push_back(published);
      published.pairings.clear();
    }
    const PlannedShard& plan = merge.shards[i].plan;
    published.pairings.push_back({.shard = merge.first_shard + i,
                                  .first_block = plan.first_block,
                                  .block_count = plan.block_count,
                                  .owner_a = merge.participants[plan.owner_a],
                                  .owner_b = merge.participants[plan.owner_b]});
  }
  effects_.publish.push_back(std::move(published));
  if (stage == 0) publish_random_leases();
}

// At the end of every step.
void Orchestrator::publish_if_due() {
  const bool over = state_.phase == RunPhase::kFinished || state_.phase == RunPhase::kStopped;
  if (over || state_.unpublished.size() >= kUnpublishedLimit) publish_random_leases();
}

void Orchestrator::publish_random_leases() {
  if (state_.unpublished.empty()) return;
  effects_.publish.push_back(RandomLeasesPublished{std::move(state_.unpublished)});
  state_.unpublished.clear();
}

}  // namespace tessera::core
