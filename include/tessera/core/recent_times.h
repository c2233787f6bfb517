// What something takes, from its last few times: their lower median. A single slow one - the first after a start, which also
// tunes kernels and fills caches, takes a thousand times the others - moves it as little as a fast one. A moving average
// would need dozens more to forget it, and who is held for slow gets few.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace tessera::core {

class RecentTimes {
 public:
  static constexpr size_t kWindow = 9;

  void add(uint32_t microseconds) {
    if (times_.size() < kWindow) {
      times_.push_back(microseconds);
    } else {
      times_[next_] = microseconds;
    }
    next_ = (next_ + 1) % kWindow;
  }
  // 0 if there is none.
  uint32_t typical() const {
    if (times_.empty()) return 0;
    std::vector<uint32_t> sorted = times_;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }
  template <class A>
  void fields(A& a) {
    a("times", times_)("next", next_);
  }

 private:
  std::vector<uint32_t> times_;
  uint32_t next_ = 0;  // the oldest one's place, when the window is full
};

}  // namespace tessera::core
