#include "tessera/core/clasp_samples.h"

#include <algorithm>

namespace tessera::core {

void ClaspSamples::note(const Receipt& receipt, TimeMs time) {
  Pending& pending = pending_[{receipt.microbatch, receipt.attempt}];
  if (pending.hops.size() <= receipt.stage) pending.hops.resize(receipt.stage + 1);
  Hop& hop = pending.hops[receipt.stage];
  if (hop.miner != kNoMiner) pending.doubled = true;
  hop = {receipt.miner, receipt.upstream, receipt.downstream};
  pending.repaired = pending.repaired || receipt.repaired;
  if (receipt.downstream == kNoMiner) {
    pending.loss = receipt.loss;
    pending.time_s = static_cast<double>(time) / 1000;
  }
  if (pending_.size() > kMaxPending) pending_.erase(pending_.begin());
}

// One miner a stage, each naming the next and being named by it.
bool ClaspSamples::is_complete(const Pending& pending, size_t stages) {
  if (pending.hops.size() != stages || pending.doubled) return false;
  for (size_t s = 0; s < stages; ++s) {
    const Hop& hop = pending.hops[s];
    if (hop.miner == kNoMiner) return false;
    if (hop.upstream != (s == 0 ? kNoMiner : pending.hops[s - 1].miner)) return false;
    if (hop.downstream != (s + 1 == stages ? kNoMiner : pending.hops[s + 1].miner)) return false;
  }
  return true;
}

bool ClaspSamples::sample_of(const RandomLease& lease, ClaspSample* sample) {
  counts_.published++;
  const auto found = pending_.find({lease.microbatch, lease.attempt});
  if (found != pending_.end() && found->second.repaired) {
    counts_.repaired++;
    return false;
  }
  if (found == pending_.end() || !is_complete(found->second, lease.pathway.size())) {
    counts_.incomplete++;
    return false;
  }
  sample->microbatch = lease.microbatch;
  for (const Hop& hop : found->second.hops) sample->pathway.push_back(hop.miner);
  sample->loss = found->second.loss;
  sample->time_s = found->second.time_s;
  counts_.rerouted += sample->pathway != lease.pathway;
  return true;
}

std::vector<ClaspSample> ClaspSamples::read(const LedgerEntry& entry) {
  std::vector<ClaspSample> samples;
  if (const auto* arrived = std::get_if<ReceiptsArrived>(&entry.event)) {
    for (const Receipt& receipt : streams_.news_in(*arrived)) {
      if (receipt.stage < 64) note(receipt, entry.time);
    }
  } else if (std::holds_alternative<RunResumed>(entry.event)) {
    pending_.clear();  // their numbers are leased again
  } else if (const auto* published = std::get_if<RandomLeasesPublished>(&entry.event)) {
    size_t stages = 0;
    for (const RandomLease& lease : published->leases) {
      ClaspSample sample;
      stages = lease.pathway.size();
      if (sample_of(lease, &sample)) samples.push_back(std::move(sample));
    }
    // What is complete now and was not published was not random.
    std::erase_if(pending_, [&](const auto& item) {
      const std::vector<Hop>& hops = item.second.hops;
      return hops.size() == stages &&
             std::none_of(hops.begin(), hops.end(), [](const Hop& hop) { return hop.miner == kNoMiner; });
    });
  }
  return samples;
}

}  // namespace tessera::core
