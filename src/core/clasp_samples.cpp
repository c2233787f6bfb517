#include "tessera/core/clasp_samples.h"

#include <algorithm>

namespace tessera::core {

void ClaspSamples::note(const Receipt& receipt, TimeMs time) {
  Hops& hops = pending_[{receipt.microbatch, receipt.attempt}];
  for (const Hop& hop : hops) {
    if (hop.stage == receipt.stage && hop.miner == receipt.miner) return;  // its first word binds
  }
  hops.push_back({.arrival = ++arrivals_,
                  .stage = receipt.stage,
                  .miner = receipt.miner,
                  .upstream = receipt.upstream,
                  .downstream = receipt.downstream,
                  .repaired = receipt.repaired,
                  .loss = receipt.loss,
                  .time_s = static_cast<double>(time) / 1000});
  if (++pending_hops_ > max_pending_) forget_oldest();
}

// Every miner has an equal part of half the room, and loses its oldest beyond that: a flood drives out nobody else's.
void ClaspSamples::forget_oldest() {
  std::map<MinerIndex, std::vector<uint64_t>> arrivals;
  for (const auto& [key, hops] : pending_) {
    for (const Hop& hop : hops) arrivals[hop.miner].push_back(hop.arrival);
  }
  const size_t part = std::max<size_t>(max_pending_ / 2 / arrivals.size(), 1);
  std::map<MinerIndex, uint64_t> oldest_kept;
  for (auto& [miner, times] : arrivals) {
    if (times.size() <= part) continue;
    const auto oldest = times.end() - static_cast<std::ptrdiff_t>(part);
    std::nth_element(times.begin(), oldest, times.end());
    oldest_kept[miner] = *oldest;
  }
  pending_hops_ = 0;
  for (auto& [key, hops] : pending_) {
    std::erase_if(hops, [&](const Hop& hop) {
      const auto kept = oldest_kept.find(hop.miner);
      return kept != oldest_kept.end() && hop.arrival < kept->second;
    });
    pending_hops_ += hops.size();
  }
  std::erase_if(pending_, [](const auto& item) { return item.second.empty(); });
}

// What is complete now and was not published was not random.
void ClaspSamples::forget_published(size_t stages) {
  pending_hops_ = 0;
  std::erase_if(pending_, [&](const auto& item) {
    if (!chain_of(item.second, stages).empty()) return true;
    pending_hops_ += item.second.size();
    return false;
  });
}

// From the head to the tail, each naming the next and being named by it; who is named by nobody is passed over. Empty: there is
// no such chain, or more than one.
ClaspSamples::Chain ClaspSamples::chain_of(const Hops& hops, size_t stages) {
  Chain found;
  if (hops.size() < stages) return found;
  for (const Hop& head : hops) {
    if (head.stage != 0 || head.upstream != kNoMiner) continue;
    Chain chain{&head};
    while (chain.size() < stages) {
      const Hop& last = *chain.back();
      const auto next = std::find_if(hops.begin(), hops.end(), [&](const Hop& hop) {
        return hop.stage == chain.size() && hop.miner == last.downstream && hop.upstream == last.miner;
      });
      if (next == hops.end()) break;
      chain.push_back(&*next);
    }
    if (chain.size() < stages || chain.back()->downstream != kNoMiner) continue;
    if (!found.empty()) return {};
    found = std::move(chain);
  }
  return found;
}

void ClaspSamples::leave_out(const std::vector<MinerIndex>& pathway) {
  for (const MinerIndex miner : pathway) shares_[miner].left_out++;
}

bool ClaspSamples::sample_of(const RandomLease& lease, ClaspSample* sample) {
  counts_.published++;
  const auto pending = pending_.find({lease.microbatch, lease.attempt});
  const Chain chain = pending == pending_.end() ? Chain{} : chain_of(pending->second, lease.pathway.size());
  for (const Hop* hop : chain) sample->pathway.push_back(hop->miner);
  const std::vector<MinerIndex>& pathway = chain.empty() ? lease.pathway : sample->pathway;
  for (const MinerIndex miner : pathway) shares_[miner].published++;
  if (chain.empty()) {
    counts_.incomplete++;
    leave_out(pathway);
    return false;
  }
  // Who hands work to a replacement knows it, and so does the replacement. One miner's word alone is worth nothing.
  const auto both = [](const Hop* below, const Hop* above) { return below->repaired && above->repaired; };
  if (std::adjacent_find(chain.begin(), chain.end(), both) != chain.end()) {
    counts_.repaired++;
    leave_out(pathway);
    return false;
  }
  sample->microbatch = lease.microbatch;
  sample->loss = chain.back()->loss;
  sample->time_s = chain.back()->time_s;
  counts_.rerouted += sample->pathway != lease.pathway;
  return true;
}

std::vector<ClaspSample> ClaspSamples::read(const LedgerEntry& entry) {
  std::vector<ClaspSample> samples;
  bounds_.read(entry.event);
  if (const auto* arrived = std::get_if<ReceiptsArrived>(&entry.event)) {
    for (const Receipt& receipt : streams_.news_in(*arrived)) {
      if (bounds_.contain(receipt)) note(receipt, entry.time);
    }
  } else if (std::holds_alternative<RunResumed>(entry.event)) {
    pending_.clear();  // their numbers are leased again
    pending_hops_ = 0;
  } else if (const auto* published = std::get_if<RandomLeasesPublished>(&entry.event)) {
    for (const RandomLease& lease : published->leases) {
      ClaspSample sample;
      if (sample_of(lease, &sample)) samples.push_back(std::move(sample));
    }
    forget_published(bounds_.stages());
  }
  return samples;
}

}  // namespace tessera::core
