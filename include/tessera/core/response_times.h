// The last times that something took, and from them how long to wait for it: median + k * MAD, the
// median absolute deviation. Both ignore a few outliers, which a mean would not.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tessera/base/clock.h"

namespace tessera::core {

class ResponseTimes {
 public:
  static constexpr size_t kWindow = 64;
  static constexpr size_t kEnough = 8;      // fewer times say nothing yet
  static constexpr TimeMs kDeviations = 8;  // k

  void add(TimeMs ms) {
    const auto value = static_cast<int32_t>(std::clamp<TimeMs>(ms, 0, INT32_MAX));
    if (times_.size() < kWindow) {
      times_.push_back(value);
    } else {
      times_[next_] = value;
    }
    next_ = (next_ + 1) % kWindow;
  }

  size_t count() const { return times_.size(); }
  // 0 if there is none; the upper of the two in the middle.
  TimeMs median() const { return middle_of(times_); }
  TimeMs deviation() const {
    const TimeMs median_now = median();
    std::vector<int32_t> distances = times_;
    for (int32_t& value : distances) value = static_cast<int32_t>(std::abs(value - median_now));
    return middle_of(std::move(distances));
  }
  // Never below `floor` (what the machines' own jitter takes) nor above `ceiling`, which also holds
  // until enough is known.
  TimeMs deadline(TimeMs floor, TimeMs ceiling) const {
    if (count() < kEnough) return ceiling;
    return std::max(std::min(median() + kDeviations * deviation(), ceiling),
                    std::min(floor, ceiling));
  }

 private:
  static TimeMs middle_of(std::vector<int32_t> values) {
    if (values.empty()) return 0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  std::vector<int32_t> times_;  // grows only as it is used: most peers never are
  size_t next_ = 0;
};

}  // namespace tessera::core
