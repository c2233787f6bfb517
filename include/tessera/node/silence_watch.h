// Who has been silent for how long, in logarithmic time: miners in the order in which they were last heard.
// Not thread-safe: the control thread's.
#pragma once

#include <list>
#include <map>
#include <optional>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/base/ids.h"

namespace tessera::node {

class SilenceWatch {
 public:
  // `now` must not decrease from call to call.
  void heard(MinerIndex miner, TimeMs now) {
    const auto [known, is_new] = known_.try_emplace(miner, Known{now, order_.end()});
    if (known->second.place != order_.end()) order_.erase(known->second.place);
    known->second = {now, order_.insert(order_.end(), miner)};
  }
  // Nothing: never.
  std::optional<TimeMs> last_heard(MinerIndex miner) const {
    const auto known = known_.find(miner);
    return known == known_.end() ? std::nullopt : std::optional(known->second.at);
  }
  // Takes out who was last heard before `time`, the longest silent first. They come back when they are heard again.
  std::vector<MinerIndex> take_silent_since(TimeMs time) {
    std::vector<MinerIndex> silent;
    while (!order_.empty()) {
      Known& known = known_.at(order_.front());
      if (known.at >= time) break;
      silent.push_back(order_.front());
      known.place = order_.end();
      order_.pop_front();
    }
    return silent;
  }
  void forget(MinerIndex miner) {
    const auto known = known_.find(miner);
    if (known == known_.end()) return;
    if (known->second.place != order_.end()) order_.erase(known->second.place);
    known_.erase(known);
  }

 private:
  struct Known {
    TimeMs at = 0;
    std::list<MinerIndex>::iterator place;  // end(): not waited for
  };
  std::list<MinerIndex> order_;
  std::map<MinerIndex, Known> known_;
};

}  // namespace tessera::node
