// Calls that wait for blobs which are not stored yet. Thread-safe.
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/ids.h"

namespace tessera::net {

template <class Job>
class ParkedCalls {
 public:
  explicit ParkedCalls(size_t most) : most_(most) {}

  // Until arrived() was told of each of `missing`, or until `expires`. False: too many wait already.
  bool park(Job job, const std::vector<Digest>& missing, TimeMs expires) {
    std::lock_guard lock(mutex_);
    if (parked_.size() >= most_) return false;
    const auto place = parked_.insert(parked_.end(), {std::move(job), {missing.begin(), missing.end()}, expires});
    for (const Digest& digest : place->missing) waiting_.emplace(digest, place);
    return true;
  }

  // Those that waited for nothing else any more.
  std::vector<Job> arrived(const Digest& digest) {
    std::lock_guard lock(mutex_);
    std::vector<Job> complete;
    const auto [first, last] = waiting_.equal_range(digest);
    for (auto found = first; found != last; ++found) {
      const Place place = found->second;
      place->missing.erase(digest);
      if (!place->missing.empty()) continue;
      complete.push_back(std::move(place->job));
      parked_.erase(place);
    }
    waiting_.erase(first, last);
    return complete;
  }

  // Those whose time is over.
  std::vector<Job> expired(TimeMs now) {
    std::lock_guard lock(mutex_);
    std::vector<Job> late;
    for (auto place = parked_.begin(); place != parked_.end();) {
      if (place->expires > now) {
        ++place;
        continue;
      }
      for (const Digest& digest : place->missing) forget(digest, place);
      late.push_back(std::move(place->job));
      place = parked_.erase(place);
    }
    return late;
  }

  std::optional<TimeMs> next_expiry() const {
    std::lock_guard lock(mutex_);
    std::optional<TimeMs> next;
    for (const Parked& parked : parked_) next = std::min(next.value_or(parked.expires), parked.expires);
    return next;
  }

 private:
  struct Parked {
    Job job;
    std::set<Digest> missing;
    TimeMs expires = 0;
  };
  using Place = typename std::list<Parked>::iterator;

  void forget(const Digest& digest, Place place) {
    const auto [first, last] = waiting_.equal_range(digest);
    const auto found = std::find_if(first, last, [&](const auto& entry) { return entry.second == place; });
    if (found != last) waiting_.erase(found);
  }

  const size_t most_;
  mutable std::mutex mutex_;
  std::list<Parked> parked_;
  std::multimap<Digest, Place> waiting_;
};

}  // namespace tessera::net
