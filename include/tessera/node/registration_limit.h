// How many new keys are admitted from one address: keys cost nothing, addresses do. IPv6 addresses of one /64, which is what a
// household has, are one address.
// Not thread-safe: the control thread's.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "tessera/base/clock.h"

namespace tessera::node {

class RegistrationLimit {
 public:
  static constexpr TimeMs kWindowMs = 60000;
  static constexpr size_t kMaxAddresses = 65536;  // of one window; more are refused

  explicit RegistrationLimit(uint32_t per_minute) : per_minute_(per_minute) {}  // 0: any number

  // Counts it if it is admitted. `address` as gRPC writes a peer's, with its port. `now` must not decrease.
  bool admits(const std::string& address, TimeMs now);

  // What counts as one address of it.
  static std::string network_of(const std::string& address);

 private:
  const uint32_t per_minute_;
  TimeMs window_began_ = 0;
  std::map<std::string, uint32_t> admitted_;  // in this window
};

}  // namespace tessera::node
