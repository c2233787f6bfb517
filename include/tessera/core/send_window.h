// How many frames a miner has under way at once. They share its uplink, so a miner that hands on all that a dead peer held
// in one go would wait longer for the last of them than it waits for any peer, blame the peers for it, and hand on what
// those hold as well. What does not fit waits here instead, where it costs nothing.
// The limit follows the link: it grows by one with every window of frames that was taken in time while the window was
// full, and is halved when a frame was not, once for all that were under way then. Then the next ones also get twice the
// time: how long a link takes is otherwise learnt from what it took in time, and of a link that became slower that is nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>

#include "tessera/base/clock.h"

namespace tessera::core {

class SendWindow {
 public:
  static constexpr double kFirst = 8;
  static constexpr double kLeast = 1;
  static constexpr double kMost = 64;
  static constexpr TimeMs kLongestPatienceMs = 600000;
  static constexpr TimeMs kForgottenMs = 60000;  // beyond its deadline: the answer is not coming any more

  bool open() const { return under_way_.size() < limit(); }
  size_t limit() const { return static_cast<size_t>(limit_); }
  size_t under_way() const { return under_way_.size(); }
  // The least time that a frame gets, whatever its peer's times were.
  TimeMs patience() const { return patience_; }

  void sent(uint64_t send, TimeMs now, TimeMs timeout) {
    const bool fills = under_way_.size() + 1 >= limit();
    under_way_[send] = {now, now + timeout, fills};
  }
  // `taken`: the peer has answered.
  void answered(uint64_t send, TimeMs now, bool taken) {
    const auto found = under_way_.find(send);
    if (found == under_way_.end()) return;
    const Frame frame = found->second;
    under_way_.erase(found);
    if (taken) {
      if (frame.fills) limit_ = std::min(kMost, limit_ + 1 / limit_);
      patience_ -= patience_ / 16;
    } else if (now >= frame.until && frame.sent_at >= cut_at_) {
      limit_ = std::max(kLeast, limit_ / 2);
      patience_ = std::min(2 * std::max(patience_, frame.until - frame.sent_at), kLongestPatienceMs);
      cut_at_ = now;
    }
  }
  // Nobody waits for its answer any more.
  void abandoned(uint64_t send) { under_way_.erase(send); }
  void forget(TimeMs now) {
    for (auto frame = under_way_.begin(); frame != under_way_.end();) {
      frame = now > frame->second.until + kForgottenMs ? under_way_.erase(frame) : std::next(frame);
    }
  }

 private:
  struct Frame {
    TimeMs sent_at = 0;
    TimeMs until = 0;
    bool fills = false;  // no other one could be sent after it
  };
  std::map<uint64_t, Frame> under_way_;  // by number; at most kMost and what was sent beyond the limit
  double limit_ = kFirst;
  TimeMs cut_at_ = 0;
  TimeMs patience_ = 0;
};

}  // namespace tessera::core
