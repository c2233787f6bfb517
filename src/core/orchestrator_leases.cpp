// Leases, pathways and receipts.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tessera/base/prng.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr double kShortestMs = 0.01;
constexpr double kLongestMs = 3'600'000;
constexpr size_t kCompletionsKept = 64;
constexpr size_t kCompletionsNeeded = 16;
constexpr uint64_t kPatience = 3;

}  // namespace

// Why this miner gets no lease now; empty if it may get one.
std::string Orchestrator::lease_refusal(const MinerRecord& miner) const {
  if (state_.phase != RunPhase::kRunning && state_.phase != RunPhase::kDraining) {
    return fmt::format("the run is {}", name_of(state_.phase));
  }
  if (miner.stage != 0) return "only head miners lease microbatches";
  if (!miner.live || !miner.ready) return "not ready";
  if (miner.on_its_way_out()) return miner.why;
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

// One ready miner a stage, of the head's neighbourhood. Uniform random for a secret share of the leases; else the one that
// would be done first with one more microbatch.
std::vector<MinerIndex> Orchestrator::propose_pathway(MicrobatchId id, uint32_t attempt, MinerIndex head,
                                                      bool* random) const {
  Prng prng(mix64(state_.draw_seed() ^ mix64(id * 1009 + attempt)));
  *random = prng.uniform() < state_.spec.pipeline.random_pathway_share;
  std::vector<MinerIndex> pathway{head};
  const uint32_t neighbourhood = state_.miners[head].place % state_.neighbourhoods;
  for (StageIndex s = 1; s < state_.stages.size(); ++s) {
    if (*random) {
      const std::vector<MinerIndex>& choices = index_.choices(s, neighbourhood);
      pathway.push_back(choices[prng.below(choices.size())]);
    } else {
      pathway.push_back(index_.fastest(s, neighbourhood));
    }
  }
  return pathway;
}

// The last completions decide how long one is waited for: three times what nine of ten took. The configured time is the
// most, and holds until the swarm has been through its pipeline twice: what is done first took the fast miners only. A hung
// peer on the way is noticed within peer_ms, and the microbatch then begins again at its stage.
uint32_t Orchestrator::lease_lifetime_ms() const {
  const TimeoutSpec& timeouts = state_.spec.timeouts;
  if (state_.completion_ms.size() < kCompletionsNeeded || state_.done < 2 * state_.open.size()) return timeouts.lease_ms;
  std::vector<uint32_t> times(state_.completion_ms.begin(), state_.completion_ms.end());
  const auto taken_by = [&](size_t tenths) {
    const auto place = times.begin() + static_cast<std::ptrdiff_t>(times.size() * tenths / 10);
    std::nth_element(times.begin(), place, times.end());
    return uint64_t{*place};
  };
  const uint64_t wanted = kPatience * taken_by(9);
  const uint64_t least = 2 * (taken_by(5) + timeouts.peer_ms);
  return static_cast<uint32_t>(std::min<uint64_t>(std::max(wanted, least), timeouts.lease_ms));
}

// Another head can go on with an attempt whose head is gone if it knows the pathway's next miner.
bool Orchestrator::may_repair(const OpenMicrobatch& microbatch, const MinerRecord& head) const {
  if (!microbatch.repair) return false;
  if (microbatch.pathway.size() < 2) return true;
  const MinerRecord* next = state_.miners.find(microbatch.pathway[1]);
  return next != nullptr && next->place != kNoPlace &&
         next->place % state_.neighbourhoods == head.place % state_.neighbourhoods;
}

// What a dead head held waits in work at others: every other head takes its part of it at its next report, also beyond what it
// asks for. Its part is what would let all heads be done at the same time, by their measured speeds.
bool Orchestrator::may_take_over(MicrobatchId id, const MinerRecord& head) const {
  const auto open = state_.open.find(id);
  if (open == state_.open.end() || !may_repair(open->second, head) || head.microbatch_us == 0) return false;
  double work = static_cast<double>(state_.reissue.size());
  double speed = 0;
  for (const MinerIndex other : index_.choices(0, head.place % state_.neighbourhoods)) {
    if (state_.miners[other].microbatch_us == 0) continue;
    work += state_.miners[other].in_flight;
    speed += 1.0 / state_.miners[other].microbatch_us;
  }
  return head.in_flight < std::min<double>(lease_limit(), std::ceil(work / speed / head.microbatch_us));
}

// The same pathway behind another head; whoever else is not there any more is replaced.
std::vector<MinerIndex> Orchestrator::mended_pathway(const OpenMicrobatch& microbatch, MinerIndex head) const {
  std::vector<MinerIndex> pathway = microbatch.pathway;
  pathway[0] = head;
  for (StageIndex s = 1; s < pathway.size(); ++s) {
    const MinerRecord* miner = state_.miners.find(pathway[s]);
    if (miner != nullptr && miner->live && miner->ready && miner->stage == s) continue;
    pathway[s] = index_.fastest(s, state_.miners[head].place % state_.neighbourhoods);
  }
  return pathway;
}

Lease Orchestrator::grant(MicrobatchId id, MinerRecord& head) {
  state_.reissue.erase(id);
  const bool is_new = id == state_.next_microbatch && state_.open.count(id) == 0;
  OpenMicrobatch& microbatch = state_.open[id];
  const bool repair = may_repair(microbatch, head);
  if (is_new) {
    state_.next_microbatch++;
  } else if (repair) {
    state_.repaired++;
  } else {
    microbatch.attempt++;
    state_.reissued++;
  }
  state_.leased++;
  const uint32_t lifetime_ms = lease_lifetime_ms();
  if (microbatch.first_leased_at == 0) microbatch.first_leased_at = now_;
  microbatch.leased = true;
  microbatch.repair = false;
  microbatch.repaired = repair;
  microbatch.deadline = now_ + lifetime_ms;
  microbatch.pathway = repair ? mended_pathway(microbatch, head.index)
                              : propose_pathway(id, microbatch.attempt, head.index, &microbatch.random_pathway);
  index_.add_lease(id, microbatch);
  for (StageIndex s = 0; s < microbatch.pathway.size(); ++s) {
    if ((microbatch.counted_stages >> s & 1) != 0) continue;
    const MinerIndex miner = microbatch.pathway[s];
    state_.miners[miner].in_flight++;
    index_.update(state_, miner);
  }
  return {.microbatch = id,
          .attempt = microbatch.attempt,
          .counted_stages = microbatch.counted_stages,
          .pathway = microbatch.pathway,
          .lifetime_ms = lifetime_ms,
          .repair = repair,
          .expires_unix_ms = now_ + lifetime_ms};
}

void Orchestrator::on(const LeasesRequested& event) {
  if (!state_.miners.has(event.miner)) return;
  MinerRecord& miner = state_.miners[event.miner];
  if (event.request <= miner.lease_request) return;
  if (!lease_refusal(miner).empty()) return;
  std::vector<Lease> granted;
  while (miner.in_flight < lease_limit()) {
    const std::optional<MicrobatchId> id = next_to_lease();
    if (!id || (granted.size() >= event.count && !may_take_over(*id, miner))) break;
    granted.push_back(grant(*id, miner));
  }
  if (granted.empty()) return;  // the request stays open: the miner repeats it
  miner.lease_request = event.request;
  miner.granted = std::move(granted);
}

// The miner that was proposed for the stage has one microbatch less before it.
void Orchestrator::stop_waiting_for(const OpenMicrobatch& microbatch, StageIndex stage) {
  const MinerIndex miner = microbatch.pathway[stage];
  state_.miners[miner].in_flight--;
  index_.update(state_, miner);
}

void Orchestrator::release(MicrobatchId id, OpenMicrobatch& microbatch) {
  if (!microbatch.leased) return;
  index_.remove_lease(id, microbatch);
  for (StageIndex s = 0; s < microbatch.pathway.size(); ++s) {
    if ((microbatch.counted_stages >> s & 1) == 0) stop_waiting_for(microbatch, s);
  }
  microbatch.leased = false;
}

void Orchestrator::expire_leases() {
  while (!index_.deadlines().empty() && now_ >= index_.deadlines().begin()->first) {
    const MicrobatchId id = index_.deadlines().begin()->second;
    OpenMicrobatch& microbatch = state_.open.at(id);
    release(id, microbatch);
    state_.reissue.insert(id);
    say(fmt::format("microbatch {} attempt {} expired; it will be issued again", id, microbatch.attempt), true);
  }
}

void Orchestrator::on(const ReceiptsArrived& event) {
  if (!state_.miners.has(event.miner)) return;
  MinerRecord& miner = state_.miners[event.miner];
  size_t rejected = 0;
  const auto pass_over_rejected = [&] {
    for (; rejected < event.rejected.size() && event.rejected[rejected] == miner.receipts_through + 1; ++rejected) {
      miner.receipts_through++;
      miner.receipts_rejected++;
    }
  };
  pass_over_rejected();
  for (const Receipt& receipt : event.receipts) {
    if (receipt.sequence != miner.receipts_through + 1) continue;  // seen already, or out of order: it will be repeated
    miner.receipts_through = receipt.sequence;
    miner.local_steps = std::max(miner.local_steps, receipt.local_step);
    count_receipt(miner, receipt);
    watch_receipt(miner, receipt);
    audit_receipt(miner, receipt);
    pass_over_rejected();
  }
  index_.update(state_, miner.index);
}

// Of microbatches that were leased: whoever names others can't push these out of the window.
void Orchestrator::watch_receipt(const MinerRecord& miner, const Receipt& receipt) {
  if (!miner.placed || receipt.microbatch >= state_.next_microbatch) return;
  const auto found = watch_.read(receipt, static_cast<uint32_t>(state_.stages.size()), miner.epoch);
  if (!found) return;
  effects_.publish.push_back(VerdictRecorded{{.miner = found->miner,
                                              .stage = found->stage,
                                              .epoch = found->epoch,
                                              .kind = VerdictKind::kReceipt,
                                              .passed = false,
                                              .reason = found->reason,
                                              .evidence = {}}});
}

// The receipt's own word on how long a counted microbatch took; what no computer can have needed is cut off.
void Orchestrator::note_time(MinerRecord& miner, const Receipt& receipt) {
  const double ms = static_cast<double>(receipt.forward_ms) + static_cast<double>(receipt.backward_ms);
  if (!(ms > 0)) return;
  miner.own_times.add(static_cast<uint32_t>(std::clamp(ms, kShortestMs, kLongestMs) * 1000));
  miner.microbatch_us = miner.own_times.typical();
}

// The gradients that this receipt confirms, its own or a neighbour's: what the miners' uploads are weighted by.
void Orchestrator::confirm_gradients(OpenMicrobatch& open, const Receipt& receipt) {
  for (const ConfirmedGradient& gradient : open.words.add(receipt, static_cast<uint32_t>(state_.stages.size()))) {
    if (!state_.miners.has(gradient.miner)) continue;
    MinerRecord& miner = state_.miners[gradient.miner];
    // Of a process that is gone, or of weights that were merged or loaded over.
    if (miner.registration.incarnation != gradient.incarnation || gradient.local_step < miner.unmerged_from) continue;
    if (miner.fresh.empty()) miner.carries_since = state_.stages[miner.stage].epoch;
    miner.fresh[gradient.local_step]++;
    index_.update(state_, miner.index);
  }
}

void Orchestrator::count_receipt(MinerRecord& miner, const Receipt& receipt) {
  if (!miner.placed || receipt.miner != miner.index || receipt.stage != miner.stage) return;
  if (receipt.microbatch >= state_.next_microbatch) {
    say(fmt::format("miner {} sent a receipt for microbatch {}, which was never leased", miner.index,
                    receipt.microbatch), true);
    return;
  }
  const auto open = state_.open.find(receipt.microbatch);
  const uint64_t bit = uint64_t{1} << miner.stage;
  if (open != state_.open.end() && receipt.attempt > open->second.attempt) {
    say(fmt::format("miner {} sent a receipt for attempt {} of microbatch {}, which was never issued", miner.index,
                    receipt.attempt, receipt.microbatch), true);
    return;
  }
  if (open != state_.open.end() && state_.spec.merge.enabled) confirm_gradients(open->second, receipt);
  if (!receipt.accumulated) return;
  if (open == state_.open.end() || (open->second.counted_stages & bit) != 0) {
    // Complete already, or another attempt's gradient of this stage counted.
    state_.double_counted++;
    say(fmt::format("microbatch {} attempt {}: a second gradient in stage {}, from miner {}", receipt.microbatch,
                    receipt.attempt, miner.stage, miner.index), true);
    return;
  }
  if (open->second.leased) stop_waiting_for(open->second, miner.stage);
  open->second.counted_stages |= bit;
  miner.counted++;
  note_time(miner, receipt);
  const uint64_t all = state_.stages.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << state_.stages.size()) - 1;
  if (open->second.counted_stages == all) {
    release(receipt.microbatch, open->second);
    note_random_lease(receipt.microbatch, open->second);
    // As many are kept as say something of all that are open: of a wide swarm one of many.
    const uint64_t every = std::max<uint64_t>(1, state_.open.size() / kCompletionsKept);
    if (open->second.first_leased_at > 0 && state_.done % every == 0) {
      state_.completion_ms.push_back(static_cast<uint32_t>(std::min<TimeMs>(now_ - open->second.first_leased_at, UINT32_MAX)));
      if (state_.completion_ms.size() > kCompletionsKept) state_.completion_ms.pop_front();
    }
    state_.reissue.erase(receipt.microbatch);
    state_.open.erase(open);
    state_.done++;
  }
}

}  // namespace tessera::core
