// Ranges of a specification's keys, checked with one message for all of them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "tessera/base/status.h"

namespace tessera::core {

struct WholeLimit {
  const char* key;
  uint64_t value;
  uint64_t low;
  uint64_t high;
};

inline Status check_whole(std::initializer_list<WholeLimit> limits) {
  for (const WholeLimit& limit : limits) {
    if (limit.value < limit.low || limit.value > limit.high) {
      return invalid_argument("{}: {} is not allowed; it must be {} to {}", limit.key, limit.value,
                              limit.low, limit.high);
    }
  }
  return ok_status();
}

enum class Ends { kClosed, kOpenLow, kOpenHigh };

struct RealLimit {
  const char* key;
  double value;
  double low;
  double high;
  Ends ends = Ends::kClosed;
};

inline Status check_real(std::initializer_list<RealLimit> limits) {
  for (const RealLimit& limit : limits) {
    const bool inside =
        limit.ends == Ends::kOpenLow    ? limit.value > limit.low && limit.value <= limit.high
        : limit.ends == Ends::kOpenHigh ? limit.value >= limit.low && limit.value < limit.high
                                        : limit.value >= limit.low && limit.value <= limit.high;
    if (inside) continue;  // never true of not-a-number
    const std::string range = limit.ends == Ends::kOpenLow
                                  ? fmt::format("above {} and at most {}", limit.low, limit.high)
                              : limit.ends == Ends::kOpenHigh
                                  ? fmt::format("at least {} and below {}", limit.low, limit.high)
                                  : fmt::format("{} to {}", limit.low, limit.high);
    return invalid_argument("{}: {} is not allowed; it must be {}", limit.key, limit.value, range);
  }
  return ok_status();
}

}  // namespace tessera::core
