// Who has been silent for how long, in constant time: miners in the order in which they were last heard.
// Not thread-safe: the control thread's.
#pragma once

#include <list>
#include <optional>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/ids.h"

namespace tessera::node {

class SilenceWatch {
 public:
  // `now` must not decrease from call to call.
  void heard(MinerIndex miner, TimeMs now) {
    if (places_.size() <= miner) places_.resize(miner + 1, order_.end());
    if (places_[miner] != order_.end()) order_.erase(places_[miner]);
    places_[miner] = order_.insert(order_.end(), {miner, now});
    if (last_.size() <= miner) last_.resize(miner + 1, kNever);
    last_[miner] = now;
  }
  // Nothing: never.
  std::optional<TimeMs> last_heard(MinerIndex miner) const {
    if (miner >= last_.size() || last_[miner] == kNever) return std::nullopt;
    return last_[miner];
  }
  // Takes out who was last heard before `time`, the longest silent first. They come back when they are heard again.
  std::vector<MinerIndex> take_silent_since(TimeMs time) {
    std::vector<MinerIndex> silent;
    while (!order_.empty() && order_.front().at < time) {
      silent.push_back(order_.front().miner);
      places_[order_.front().miner] = order_.end();
      order_.pop_front();
    }
    return silent;
  }

 private:
  struct Entry {
    MinerIndex miner = kNoMiner;
    TimeMs at = 0;
  };
  static constexpr TimeMs kNever = -1;
  std::list<Entry> order_;
  std::vector<TimeMs> last_;
  std::vector<std::list<Entry>::iterator> places_;  // end(): not waited for
};

}  // namespace tessera::node
