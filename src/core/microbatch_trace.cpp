#include "tessera/core/microbatch_trace.h"

#include <algorithm>
#include <tuple>

namespace tessera::core {
namespace {

uint32_t stages_of(const RunCreated& created) {
  RunSpec spec;
  return decode(created.run_spec, &spec) ? spec.pipeline.stages : 0;
}

}  // namespace

MicrobatchTrace::MicrobatchTrace(MicrobatchId microbatch, bool replays) : rewards_({}, 0, no_voided_epochs_) {
  trace_.microbatch = microbatch;
  trace_.leases_known = replays;
  if (replays) replay_ = std::make_unique<Orchestrator>();
}

// The grant is no event of its own: it is what the state shows after the request.
void MicrobatchTrace::watch_lease(const LedgerEntry& entry) {
  const auto open_now = [&]() -> std::optional<OpenMicrobatch> {
    const auto found = replay_->state().open.find(trace_.microbatch);
    return found == replay_->state().open.end() ? std::nullopt : std::optional(found->second);
  };
  const std::optional<OpenMicrobatch> before = open_now();
  replay_->step(std::max(replay_->now(), entry.time), entry.event);
  const std::optional<OpenMicrobatch> after = open_now();
  if (!std::holds_alternative<LeasesRequested>(entry.event) || !after || !after->leased) return;
  if (before && before->leased) return;
  trace_.leases.push_back({.entry = entry.sequence,
                           .unix_ms = entry.time,
                           .attempt = after->attempt,
                           .head = std::get<LeasesRequested>(entry.event).miner,
                           .pathway = after->pathway,
                           .random_pathway = after->random_pathway,
                           .repair = after->repaired,
                           .deadline_unix_ms = after->deadline});
}

void MicrobatchTrace::take(const std::vector<RewardedReceipt>& settled) {
  for (const RewardedReceipt& reward : settled) {
    if (reward.microbatch != trace_.microbatch) continue;
    for (TracedHop& hop : trace_.hops) {
      if (hop.entry != reward.entry || hop.receipt.miner != reward.miner || hop.receipt.sequence != reward.sequence) continue;
      hop.outcome = name_of(reward.outcome);
      hop.why = reward.why;
    }
  }
}

void MicrobatchTrace::read(const LedgerEntry& entry) {
  if (replay_) watch_lease(entry);
  keys_.read(entry.event);
  held_.read(entry.event);
  voided_.read(entry);
  if (const auto* created = std::get_if<RunCreated>(&entry.event)) {
    trace_.stages = stages_of(*created);
  } else if (const auto* arrived = std::get_if<ReceiptsArrived>(&entry.event)) {
    for (const Receipt& receipt : streams_.news_in(*arrived)) {
      if (receipt.microbatch != trace_.microbatch) continue;
      TracedHop& hop = trace_.hops.emplace_back();
      hop.entry = entry.sequence;
      hop.unix_ms = entry.time;
      hop.epoch = held_.of(receipt.miner);
      hop.receipt = receipt;
      hop.outcome = "not counted";
      hop.why = "signed again, or beyond the run";
    }
  } else if (const auto* published = std::get_if<RandomLeasesPublished>(&entry.event); published && !replay_) {
    for (const RandomLease& lease : published->leases) {
      if (lease.microbatch != trace_.microbatch) continue;
      TracedLease& known = trace_.leases.emplace_back();
      known.entry = entry.sequence;
      known.unix_ms = entry.time;
      known.attempt = lease.attempt;
      known.head = lease.pathway.empty() ? kNoMiner : lease.pathway[0];
      known.pathway = lease.pathway;
      known.random_pathway = true;
    }
  } else if (std::holds_alternative<RunResumed>(entry.event)) {
    resumed_ = entry.sequence;
  } else if (const auto* upload = std::get_if<UploadCommitted>(&entry.event)) {
    uploads_[upload->miner].push_back({entry.sequence, upload->commit.target, upload->commit.snapshot_step});
  } else if (const auto* paired = std::get_if<PairingsPublished>(&entry.event)) {
    note_merge(entry, *paired);
  } else if (const auto* verdict = std::get_if<VerdictRecorded>(&entry.event)) {
    verdicts_.push_back({entry.sequence, entry.time, name_of(verdict->verdict.kind), verdict->verdict});
  }
  take(rewards_.read(entry));
}

// A large merge has several such entries, one after the other.
void MicrobatchTrace::note_merge(const LedgerEntry& entry, const PairingsPublished& paired) {
  std::vector<Merge>& merges = merges_[{paired.stage, paired.target}];
  const bool goes_on = !merges.empty() && merges.back().begun_after == resumed_;
  if (!goes_on) merges.push_back({{paired.stage, paired.target, entry.sequence, entry.time}, resumed_, {}});
  for (const PublishedPairing& pairing : paired.pairings) {
    for (const TracedHop& hop : trace_.hops) {
      if (hop.receipt.miner != pairing.owner_a && hop.receipt.miner != pairing.owner_b) continue;
      merges.back().owners.insert(hop.receipt.miner);
    }
  }
}

// The first complete one whose snapshot the miner took after the gradient's optimizer step, and whose manifest has its upload:
// each upload of the manifest owns a shard.
const TracedMerge* MicrobatchTrace::merge_of(const TracedHop& hop) const {
  const auto uploads = uploads_.find(hop.receipt.miner);
  if (uploads == uploads_.end()) return nullptr;
  for (const Upload& upload : uploads->second) {
    if (upload.entry < hop.entry || upload.snapshot_step <= hop.receipt.local_step) continue;
    const auto merges = merges_.find({hop.receipt.stage, upload.target});
    if (merges == merges_.end()) continue;
    for (const Merge& merge : merges->second) {
      if (merge.begun_after < upload.entry && upload.entry < merge.traced.entry && merge.owners.count(hop.receipt.miner) > 0) return &merge.traced;
    }
  }
  return nullptr;
}

TracedMicrobatch MicrobatchTrace::finish() {
  take(rewards_.finish());
  std::set<StageIndex> counted;
  std::set<EpochOfMiner> epochs;
  for (TracedHop& hop : trace_.hops) {
    const Receipt& receipt = hop.receipt;
    if (receipt.miner < keys_.keys().size()) hop.node = keys_.keys()[receipt.miner];
    const EpochOfMiner epoch{receipt.miner, receipt.stage, hop.epoch};
    epochs.insert(epoch);
    hop.voided = voided_.find(epoch) != nullptr;
    if (!receipt.accumulated || !counted.insert(receipt.stage).second) continue;
    if (receipt.stage + 1 == trace_.stages) trace_.loss = receipt.loss;
    if (const TracedMerge* merge = merge_of(hop)) trace_.merges.push_back(*merge);
  }
  trace_.complete = trace_.stages > 0 && counted.size() == trace_.stages;
  std::stable_sort(trace_.hops.begin(), trace_.hops.end(), [](const TracedHop& a, const TracedHop& b) {
    return std::tie(a.receipt.attempt, a.receipt.stage) < std::tie(b.receipt.attempt, b.receipt.stage);
  });
  for (TracedVerdict& verdict : verdicts_) {
    const Verdict& about = verdict.verdict;
    if (epochs.count({about.miner, about.stage, about.epoch}) > 0) trace_.verdicts.push_back(std::move(verdict));
  }
  return std::move(trace_);
}

}  // namespace tessera::core
