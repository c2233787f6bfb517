// Time as data. Core code takes a Time argument; only shells read these clocks.
#pragma once

#include <chrono>
#include <cstdint>

namespace tessera {

// Milliseconds. Monotonic times count from an arbitrary point, unix times from 1970.
using TimeMs = int64_t;

inline TimeMs monotonic_now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
inline TimeMs unix_now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace tessera
