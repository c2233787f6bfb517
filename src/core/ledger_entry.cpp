#include "tessera/core/ledger_entry.h"

#include "tessera/core/run_spec.h"

namespace tessera::core {

std::vector<Receipt> ReceiptStreams::news_in(const ReceiptsArrived& arrived) {
  std::vector<Receipt> news;
  Stream& stream = streams_[arrived.miner];
  size_t rejected = 0;
  const auto pass_over_rejected = [&] {
    while (rejected < arrived.rejected.size() && arrived.rejected[rejected] == stream.through + 1) {
      stream.through++;
      rejected++;
    }
  };
  for (const Receipt& receipt : arrived.receipts) {
    if (receipt.incarnation != stream.incarnation) stream = {receipt.incarnation, 0};
    pass_over_rejected();
    if (receipt.sequence != stream.through + 1) continue;
    stream.through = receipt.sequence;
    news.push_back(receipt);
  }
  pass_over_rejected();
  return news;
}

void RunBounds::read(const Event& event) {
  const auto take = [this](const std::string& encoded) {
    RunSpec spec;
    if (!decode(encoded, &spec) || spec.pipeline.stages > 64) return;
    stages_ = spec.pipeline.stages;
    total_microbatches_ = spec.total_microbatches();
  };
  if (const auto* created = std::get_if<RunCreated>(&event)) take(created->run_spec);
  if (const auto* changed = std::get_if<SpecChanged>(&event)) take(changed->run_spec);
  if (const auto* resumed = std::get_if<RunResumed>(&event)) take(resumed->run_spec);
}

void HeldEpochs::read(const Event& event) {
  if (const auto* held = std::get_if<StateHeld>(&event)) epochs_[held->miner] = held->applied.epoch;
}

Epoch HeldEpochs::of(MinerIndex miner) const {
  const auto found = epochs_.find(miner);
  return found == epochs_.end() ? 0 : found->second;
}

void MinerKeys::read(const Event& event) {
  const auto* registered = std::get_if<MinerRegistered>(&event);
  if (registered == nullptr) return;
  const NodeId& node = registered->registration.node;
  if (known_.emplace(node, static_cast<MinerIndex>(keys_.size())).second) keys_.push_back(node);
}

}  // namespace tessera::core
