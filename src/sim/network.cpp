#include "network.h"

#include <algorithm>

namespace tessera::sim {
namespace {

constexpr double kLinkBufferBytes = 256 * 1024;  // of a router at home

double us_per_byte(double mbit) { return mbit > 0 ? 8.0 / mbit : 0; }

}  // namespace

Network::Network(const config::SimSpec& sim, Prng* random)
    : latency_us_(std::max<TimeUs>(1, us_of_ms(sim.latency_ms))),
      jitter_us_(static_cast<uint64_t>(us_of_ms(sim.latency_jitter_ms))),
      up_us_per_byte_(us_per_byte(sim.upload_mbit)),
      down_us_per_byte_(us_per_byte(sim.download_mbit)),
      random_(random) {}

void Network::add_node() {
  up_free_.push_back(0);
  down_free_.push_back(0);
  cuts_.push_back(0);
}

TimeUs Network::latency() {
  return latency_us_ + (jitter_us_ > 0 ? static_cast<TimeUs>(random_->below(jitter_us_ + 1)) : 0);
}

TimeUs Network::arrival(TimeUs now, uint32_t from, uint64_t bytes) {
  TimeUs& free = up_free_[from];
  const auto takes = static_cast<TimeUs>(static_cast<double>(bytes) * up_us_per_byte_);
  const auto held = static_cast<TimeUs>(kLinkBufferBytes * up_us_per_byte_);
  const TimeUs begins = std::clamp(free, now, now + held);
  free = std::max(free, now) + takes;
  return begins + takes + latency();
}

std::optional<TimeUs> Network::frame_arrival(TimeUs now, uint32_t from, uint64_t bytes,
                                             TimeUs until) {
  TimeUs& free = up_free_[from];
  const TimeUs begins = std::max(free, now);
  const TimeUs ends =
      begins + static_cast<TimeUs>(static_cast<double>(bytes) * up_us_per_byte_);
  if (ends > until) {
    if (begins < until) free = until;
    return std::nullopt;
  }
  free = ends;
  return ends + latency();
}

TimeUs Network::delivery(TimeUs now, uint32_t to, uint64_t bytes) {
  TimeUs& free = down_free_[to];
  free = std::max(free, now) + static_cast<TimeUs>(static_cast<double>(bytes) * down_us_per_byte_);
  return free;
}

TimeUs Network::bulk_time(uint64_t bytes_up, uint64_t bytes_down) {
  return 2 * latency() + static_cast<TimeUs>(static_cast<double>(bytes_up) * up_us_per_byte_ +
                                             static_cast<double>(bytes_down) * down_us_per_byte_);
}

}  // namespace tessera::sim
