// Leases, pathways and receipts.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/base/prng.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {

// Why this miner gets no lease now; empty if it may get one.
std::string Orchestrator::lease_refusal(const MinerRecord& miner) const {
  if (state_.phase != RunPhase::kRunning && state_.phase != RunPhase::kDraining) {
    return fmt::format("the run is {}", name_of(state_.phase));
  }
  if (miner.stage != 0) return "only head miners lease microbatches";
  if (!miner.live || !miner.ready) return "not ready";
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    if (!stage_has_ready(s)) return fmt::format("stage {} has no ready miner", s);
  }
  return "";
}

std::optional<MicrobatchId> Orchestrator::next_to_lease() const {
  if (!state_.reissue.empty()) return *state_.reissue.begin();
  if (state_.phase == RunPhase::kDraining) return std::nullopt;
  const MicrobatchId next = state_.next_microbatch;
  if (next >= state_.spec.total_microbatches()) return std::nullopt;
  if (state_.spec.training.synchronous) {
    const uint64_t group = uint64_t{state_.spec.training.microbatches_per_step} * state_.spec.pipeline.miners_per_stage;
    if (next / group != state_.done / group) return std::nullopt;
  }
  return next;
}

// One ready miner a stage. Uniform random for a secret share of the leases; else the one with the fewest open microbatches.
std::vector<MinerIndex> Orchestrator::propose_pathway(MicrobatchId id, uint32_t attempt, MinerIndex head,
                                                      bool* random) const {
  Prng prng(mix64(state_.secret ^ mix64(id * 1009 + attempt)));
  *random = prng.uniform() < state_.spec.pipeline.random_pathway_share;
  std::vector<MinerIndex> pathway{head};
  for (StageIndex s = 1; s < state_.stages.size(); ++s) {
    std::vector<const MinerRecord*> ready;
    for (const MinerRecord& miner : state_.miners) {
      if (miner.live && miner.ready && miner.stage == s) ready.push_back(&miner);
    }
    TESSERA_CHECK(!ready.empty());
    if (*random) {
      pathway.push_back(ready[prng.below(ready.size())]->index);
      continue;
    }
    const auto best = std::min_element(ready.begin(), ready.end(), [](const MinerRecord* a, const MinerRecord* b) {
      return std::tuple(a->in_flight, a->counted, a->index) < std::tuple(b->in_flight, b->counted, b->index);
    });
    pathway.push_back((*best)->index);
  }
  return pathway;
}

Lease Orchestrator::grant(MicrobatchId id, MinerRecord& head) {
  state_.reissue.erase(id);
  const bool is_new = id == state_.next_microbatch && state_.open.count(id) == 0;
  OpenMicrobatch& microbatch = state_.open[id];
  if (is_new) {
    state_.next_microbatch++;
  } else {
    microbatch.attempt++;
    state_.reissued++;
  }
  state_.leased++;
  microbatch.leased = true;
  microbatch.deadline = now_ + state_.spec.timeouts.lease_ms;
  microbatch.pathway = propose_pathway(id, microbatch.attempt, head.index, &microbatch.random_pathway);
  for (const MinerIndex miner : microbatch.pathway) state_.miners[miner].in_flight++;
  return {.microbatch = id,
          .attempt = microbatch.attempt,
          .counted_stages = microbatch.counted_stages,
          .pathway = microbatch.pathway,
          .lifetime_ms = state_.spec.timeouts.lease_ms};
}

void Orchestrator::on(const LeasesRequested& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (event.request <= miner.lease_request) return;
  if (!lease_refusal(miner).empty()) return;
  std::vector<Lease> granted;
  while (granted.size() < event.count && miner.in_flight < lease_limit()) {
    const std::optional<MicrobatchId> id = next_to_lease();
    if (!id) break;
    granted.push_back(grant(*id, miner));
  }
  if (granted.empty()) return;  // the request stays open: the miner repeats it
  miner.lease_request = event.request;
  miner.granted = std::move(granted);
}

void Orchestrator::release(OpenMicrobatch& microbatch) {
  if (!microbatch.leased) return;
  for (const MinerIndex miner : microbatch.pathway) state_.miners[miner].in_flight--;
  microbatch.leased = false;
}

void Orchestrator::expire_leases() {
  for (auto& [id, microbatch] : state_.open) {
    if (!microbatch.leased || now_ < microbatch.deadline) continue;
    release(microbatch);
    state_.reissue.insert(id);
    say(fmt::format("microbatch {} attempt {} expired; it will be issued again", id, microbatch.attempt), true);
  }
}

void Orchestrator::on(const ReceiptsArrived& event) {
  if (event.miner >= state_.miners.size()) return;
  MinerRecord& miner = state_.miners[event.miner];
  for (const Receipt& receipt : event.receipts) {
    if (receipt.sequence != miner.receipts_through + 1) continue;  // seen already, or out of order: it will be repeated
    miner.receipts_through = receipt.sequence;
    miner.local_steps = std::max(miner.local_steps, receipt.local_step);
    count_receipt(miner, receipt);
  }
}

void Orchestrator::count_receipt(MinerRecord& miner, const Receipt& receipt) {
  if (!receipt.accumulated) return;
  if (receipt.microbatch >= state_.next_microbatch) {
    say(fmt::format("miner {} sent a receipt for microbatch {}, which was never leased", miner.index,
                    receipt.microbatch), true);
    return;
  }
  const auto open = state_.open.find(receipt.microbatch);
  const uint64_t bit = uint64_t{1} << miner.stage;
  if (open == state_.open.end() || (open->second.counted_stages & bit) != 0) {
    // Complete already, or another attempt's gradient of this stage counted.
    state_.double_counted++;
    say(fmt::format("microbatch {} attempt {}: a second gradient in stage {}, from miner {}", receipt.microbatch,
                    receipt.attempt, miner.stage, miner.index), true);
    return;
  }
  open->second.counted_stages |= bit;
  if (state_.spec.merge.enabled) miner.fresh[receipt.local_step]++;
  miner.counted++;
  const uint64_t all = state_.stages.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << state_.stages.size()) - 1;
  if (open->second.counted_stages == all) {
    release(open->second);
    state_.reissue.erase(receipt.microbatch);
    state_.open.erase(open);
    state_.done++;
  }
}

}  // namespace tessera::core
