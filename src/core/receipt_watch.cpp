#include "tessera/core/receipt_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tessera/core/receipt_pair.h"

namespace tessera::core {
namespace {

constexpr size_t kMaxOfAStage = 4;  // receipts of a microbatch

// The attempt's receipts, one a stage, that confirm each other from head to tail: depth first, few of each stage.
bool find_pathway(const std::vector<Receipt>& hops, uint32_t attempt, StageIndex stage, uint32_t stages, std::vector<const Receipt*>* found) {
  if (stage == stages) return true;
  for (const Receipt& hop : hops) {
    if (hop.stage != stage || hop.attempt != attempt) continue;
    if (stage > 0 && compare(*found->back(), hop).word != PairWord::kConfirms) continue;
    found->push_back(&hop);
    if (find_pathway(hops, attempt, stage + 1, stages, found)) return true;
    found->pop_back();
  }
  return false;
}

}  // namespace

void ReceiptWatch::forget() {
  watched_.clear();
  watched_from_ = 0;
  miners_.clear();
}

std::optional<std::string> ReceiptWatch::twice(Microbatch& microbatch, const Receipt& receipt) const {
  if (!receipt.accumulated) return std::nullopt;
  for (const Accumulated& before : microbatch.accumulated) {
    if (before.miner != receipt.miner || before.stage != receipt.stage || before.incarnation != receipt.incarnation) continue;
    return fmt::format("receipts {} and {} of one process both say that the gradient of microbatch {} went into its sum",
                       before.receipt, receipt.sequence, receipt.microbatch);
  }
  if (microbatch.accumulated.size() < kMaxOfAStage * 64) {
    microbatch.accumulated.push_back({receipt.miner, receipt.stage, receipt.incarnation, receipt.sequence});
  }
  return std::nullopt;
}

std::optional<std::string> ReceiptWatch::disowned(const Microbatch& microbatch, const Receipt& receipt) {
  const std::vector<MinerIndex>& pathway = microbatch.pathway;
  if (receipt.attempt != microbatch.attempt || receipt.repaired || pathway[receipt.stage] == receipt.miner) return std::nullopt;
  const MinerIndex before = receipt.stage == 0 ? kNoMiner : pathway[receipt.stage - 1];
  const MinerIndex after = receipt.stage + 1 == pathway.size() ? kNoMiner : pathway[receipt.stage + 1];
  if (receipt.upstream != before || receipt.downstream != after) return std::nullopt;
  Miner& miner = miners_[receipt.miner];
  miner.disowned++;
  const uint64_t of_pair = ++miner.pairs[{before, after}];
  uint64_t most = of_pair;
  for (const auto& [pair, count] : miner.pairs) most = std::max(most, count);
  const auto share_of = [](uint64_t whole, double share) { return static_cast<double>(whole) * share; };
  if (miner.disowned < kLeastDisowned || static_cast<double>(miner.disowned) < share_of(miner.receipts, kDisownedShare) ||
      static_cast<double>(most) > share_of(miner.disowned, kOfOnePair)) {
    return std::nullopt;
  }
  return fmt::format("{} of its {} receipts of the epoch are for work that the miners it names, {} pairs of them, have signed that "
                     "another did; the last is receipt {} for microbatch {}", miner.disowned, miner.receipts, miner.pairs.size(),
                     receipt.sequence, receipt.microbatch);
}

// True: the pathway is known now, by `receipt`.
bool ReceiptWatch::settle(Microbatch& microbatch, const Receipt& receipt, uint32_t stages) {
  if (receipt.repaired) return false;
  size_t of_stage = 0;
  for (const Receipt& hop : microbatch.hops) {
    if (hop.stage != receipt.stage) continue;
    if (hop.miner == receipt.miner && hop.attempt == receipt.attempt) return false;  // its first word binds
    ++of_stage;
  }
  if (of_stage >= kMaxOfAStage) return false;
  microbatch.hops.push_back(receipt);
  if (microbatch.hops.size() < stages) return false;
  std::vector<const Receipt*> pathway;
  if (!find_pathway(microbatch.hops, receipt.attempt, 0, stages, &pathway)) return false;
  microbatch.attempt = receipt.attempt;
  for (const Receipt* hop : pathway) microbatch.pathway.push_back(hop->miner);
  return true;
}

std::optional<ReceiptWatch::Finding> ReceiptWatch::read(const Receipt& receipt, uint32_t stages, Epoch epoch) {
  if (receipt.stage >= stages || receipt.microbatch < watched_from_) return std::nullopt;
  if (Miner& miner = miners_[receipt.miner]; miner.epoch != epoch) miner = {.epoch = epoch, .pairs = {}, .found_in = miner.found_in};
  miners_[receipt.miner].receipts++;
  Microbatch& microbatch = watched_[receipt.microbatch];
  std::optional<Finding> finding;
  const auto note = [&](const Receipt& of, const std::optional<std::string>& reason) {
    Miner& miner = miners_[of.miner];
    if (!reason || finding || miner.found_in == miner.epoch) return;
    miner.found_in = miner.epoch;
    finding = Finding{of.miner, of.stage, miner.epoch, *reason};
  };
  note(receipt, twice(microbatch, receipt));
  if (!microbatch.pathway.empty()) {
    note(receipt, disowned(microbatch, receipt));
  } else if (settle(microbatch, receipt, stages)) {
    for (const Receipt& hop : std::exchange(microbatch.hops, {})) note(hop, disowned(microbatch, hop));
  }
  if (watched_.size() > kMaxWatched) {
    watched_from_ = watched_.begin()->first + 1;
    watched_.erase(watched_.begin());
  }
  return finding;
}

}  // namespace tessera::core
