#include "tessera/core/rewards.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tessera/core/receipt_pair.h"

namespace tessera::core {
namespace {

constexpr double kMsPerHour = 3'600'000;

uint64_t all_of(uint32_t stages) { return stages >= 64 ? ~uint64_t{0} : (uint64_t{1} << stages) - 1; }

}  // namespace

const char* name_of(RewardOutcome outcome) {
  switch (outcome) {
    case RewardOutcome::kFull: return "full";
    case RewardOutcome::kForwardOnly: return "forward only";
    case RewardOutcome::kContradicted: return "contradicted";
    case RewardOutcome::kUnconfirmed: return "unconfirmed";
  }
  return "unknown";
}

double RewardRules::weight(TimeMs age_ms) const {
  const double hours = static_cast<double>(std::max<TimeMs>(age_ms, 0)) / kMsPerHour;
  if (half_life_h > 0) return std::exp2(-hours / half_life_h);
  return hours <= window_h ? 1 : 0;
}

void VoidedEpochs::read(const LedgerEntry& entry) {
  const auto* recorded = std::get_if<VerdictRecorded>(&entry.event);
  if (recorded == nullptr || !voids_epoch(recorded->verdict)) return;
  const Verdict& verdict = recorded->verdict;
  causes_.emplace(EpochOfMiner{verdict.miner, verdict.stage, verdict.epoch}, Cause{entry.sequence, verdict});
}

const VoidedEpochs::Cause* VoidedEpochs::find(const EpochOfMiner& epoch) const {
  const auto found = causes_.find(epoch);
  return found == causes_.end() ? nullptr : &found->second;
}

// At most one gradient of a (stage, microbatch): the first whose neighbours confirm it.
bool Rewards::count(const Receipt& receipt) {
  if (!receipt.accumulated) return false;
  const uint64_t bit = uint64_t{1} << receipt.stage;
  if (receipt.microbatch < complete_below_ && counted_.count(receipt.microbatch) == 0) return false;
  uint64_t& mask = counted_[receipt.microbatch];
  if ((mask & bit) != 0) return false;
  mask |= bit;
  const uint64_t all = all_of(bounds_.stages());
  while (!counted_.empty() && counted_.begin()->first == complete_below_ && counted_.begin()->second == all) {
    counted_.erase(counted_.begin());
    complete_below_++;
  }
  if (counted_.size() > kMaxUnfinished) {
    complete_below_ = std::max(complete_below_, counted_.begin()->first + 1);
    counted_.erase(counted_.begin());
  }
  return true;
}

void Rewards::resumed(const RunResumed& event) {
  counted_.clear();
  complete_below_ = event.next_microbatch;
  for (const OpenAtCheckpoint& open : event.open) counted_[open.microbatch] = open.counted_stages;
}

void Rewards::note(const LedgerEntry& entry, const Receipt& receipt) {
  if (!bounds_.contain(receipt)) return;
  const Key key{receipt.microbatch, receipt.attempt};
  Attempt& attempt = pending_[key];
  for (const Hop& hop : attempt.hops) {
    if (hop.receipt.stage == receipt.stage && hop.receipt.miner == receipt.miner) return;  // its first word binds
  }
  by_age_.erase({attempt.newest, key});
  attempt.newest = entry.time;
  by_age_.insert({attempt.newest, key});
  attempt.hops.push_back({entry.sequence, entry.time, held_.of(receipt.miner), receipt});
}

// One receipt a stage, confirmed on all boundaries: what else comes can't change what these are worth.
bool Rewards::is_whole(const Attempt& attempt) const {
  if (attempt.hops.size() != bounds_.stages()) return false;
  std::vector<const Receipt*> by_stage(bounds_.stages());
  for (const Hop& hop : attempt.hops) {
    // A replaced miner may still send its own.
    if (hop.receipt.repaired || by_stage[hop.receipt.stage] != nullptr) return false;
    by_stage[hop.receipt.stage] = &hop.receipt;
  }
  for (size_t s = 1; s < by_stage.size(); ++s) {
    if (compare(*by_stage[s - 1], *by_stage[s]).word != PairWord::kConfirms) return false;
  }
  return true;
}

// Its neighbours are those of the same attempt in the stages beside its own; with several (a repair), the one that confirms
// decides, then the one that contradicts.
RewardedReceipt Rewards::judge(const Attempt& attempt, const Hop& hop) {
  const Receipt& receipt = hop.receipt;
  RewardedReceipt judged{.entry = hop.entry, .time = hop.time, .miner = receipt.miner, .stage = receipt.stage,
                         .epoch = hop.epoch, .sequence = receipt.sequence, .microbatch = receipt.microbatch,
                         .attempt = receipt.attempt, .outcome = RewardOutcome::kFull, .why = "", .voided = false, .score = 0};
  PairFinding below{receipt.stage == 0 ? PairWord::kConfirms : PairWord::kSilent, "no receipt of the miner before it"};
  PairFinding above{receipt.stage + 1 == bounds_.stages() ? PairWord::kConfirms : PairWord::kSilent, "no receipt of the miner after it"};
  const auto better = [](const PairFinding& a, const PairFinding& b) {
    const auto rank = [](const PairFinding& c) { return c.word == PairWord::kConfirms ? 2 : c.word == PairWord::kContradicts ? 1 : 0; };
    return rank(a) > rank(b);
  };
  for (const Hop& other : attempt.hops) {
    if (other.receipt.stage + 1 == receipt.stage) {
      if (const PairFinding said = compare(other.receipt, receipt); better(said, below)) below = said;
    } else if (other.receipt.stage == receipt.stage + 1) {
      if (const PairFinding said = compare(receipt, other.receipt); better(said, above)) above = said;
    }
  }
  if (below.word == PairWord::kContradicts || above.word == PairWord::kContradicts) {
    judged.outcome = RewardOutcome::kContradicted;
    judged.why = below.word == PairWord::kContradicts ? below.why : above.why;
  } else if (below.word == PairWord::kConfirms && above.word == PairWord::kConfirms && count(receipt)) {
    judged.why = "both neighbours confirm it";
  } else if (below.word == PairWord::kConfirms && above.word == PairWord::kConfirms) {
    judged.outcome = RewardOutcome::kForwardOnly;
    judged.why = receipt.accumulated ? "another gradient of the stage was first" : "the stage had a gradient already";
  } else if ((below.word == PairWord::kConfirms && receipt.stage > 0) ||
             (above.word == PairWord::kConfirms && receipt.stage + 1 < bounds_.stages())) {
    judged.outcome = RewardOutcome::kForwardOnly;
    judged.why = below.word == PairWord::kConfirms ? above.why : below.why;
  } else {
    judged.outcome = RewardOutcome::kUnconfirmed;
    judged.why = below.word == PairWord::kSilent ? below.why : above.why;
  }
  return judged;
}

void Rewards::settle(const Attempt& attempt, std::vector<RewardedReceipt>* settled) {
  for (const Hop& hop : attempt.hops) {
    RewardedReceipt judged = judge(attempt, hop);
    const EpochOfMiner epoch{judged.miner, judged.stage, judged.epoch};
    RewardEpoch& sum = epochs_[epoch];
    sum.voided = judged.voided = voided_.find(epoch) != nullptr;
    double share = 0;
    switch (judged.outcome) {
      case RewardOutcome::kFull: sum.full++; share = 1; break;
      case RewardOutcome::kForwardOnly: sum.forward_only++; share = rules_.forward_share; break;
      case RewardOutcome::kContradicted: sum.contradicted++; break;
      case RewardOutcome::kUnconfirmed: sum.unconfirmed++; break;
    }
    const double weight = rules_.weight(now_ - judged.time);
    sum.aged_out += share > 0 && weight == 0;
    (judged.voided ? sum.lost_score : sum.score) += share * weight;
    judged.score = judged.voided ? 0 : share * weight;
    settled->push_back(std::move(judged));
  }
}

void Rewards::settle_whole(const ReceiptsArrived& arrived, std::vector<RewardedReceipt>* settled) {
  for (const Receipt& receipt : arrived.receipts) {
    const auto found = pending_.find({receipt.microbatch, receipt.attempt});
    if (found == pending_.end() || !is_whole(found->second)) continue;
    settle(found->second, settled);
    by_age_.erase({found->second.newest, found->first});
    pending_.erase(found);
  }
}

void Rewards::settle_old(TimeMs now, std::vector<RewardedReceipt>* settled) {
  while (!by_age_.empty() && (now - by_age_.begin()->first > kSettleMs || pending_.size() > kMaxPending)) {
    const Key key = by_age_.begin()->second;
    by_age_.erase(by_age_.begin());
    settle(pending_.at(key), settled);
    pending_.erase(key);
  }
}

std::vector<RewardedReceipt> Rewards::read(const LedgerEntry& entry) {
  std::vector<RewardedReceipt> settled;
  held_.read(entry.event);
  bounds_.read(entry.event);
  if (const auto* again = std::get_if<RunResumed>(&entry.event)) {
    settled = finish();
    resumed(*again);
  } else if (const auto* arrived = std::get_if<ReceiptsArrived>(&entry.event)) {
    for (const Receipt& receipt : streams_.news_in(*arrived)) note(entry, receipt);
    settle_whole(*arrived, &settled);
  }
  settle_old(entry.time, &settled);
  return settled;
}

std::vector<RewardedReceipt> Rewards::finish() {
  std::vector<RewardedReceipt> settled;
  for (const auto& [key, attempt] : pending_) settle(attempt, &settled);
  pending_.clear();
  by_age_.clear();
  return settled;
}

std::map<MinerIndex, double> Rewards::scores() const {
  std::map<MinerIndex, double> scores;
  for (const auto& [key, epoch] : epochs_) scores[key.miner] += epoch.score;
  return scores;
}

}  // namespace tessera::core
