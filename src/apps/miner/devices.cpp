#include "miner/devices.h"

#include <fmt/format.h>

#include <algorithm>

#include "tessera/collective/groups.h"
#include "tessera/core/memory_plan.h"

namespace tessera::apps {
namespace {

// Of one operation between the workers; longer than any takes that does not hang.
constexpr std::chrono::milliseconds kPatience{60000};

// Of one worker.
uint64_t memory_of(const config::MinerConfig& config, const model::BoxOptions& box) {
  if (config.memory_bytes > 0) return config.memory_bytes;
  uint64_t least = UINT64_MAX;
  for (const std::string& device : box.devices) least = std::min(least, model::device_memory_bytes(device));
  return box.devices.front() == "cpu" ? least / box.devices.size() : least;  // CPUs share the host's
}

}  // namespace

StatusOr<MinerDevices> open_devices(const config::MinerConfig& config) {
  MinerDevices devices;
  if (config.gpus.size() < 2) {
    const std::string wanted = config.gpus.empty() || config.device.kind == config::Device::Kind::kCpu
                                   ? name_of(config.device)
                                   : fmt::format("cuda:{}", config.gpus.front());
    TESSERA_ASSIGN_OR_RETURN(devices.first, model::choose_device(wanted));
    devices.description = devices.first;
    devices.memory_bytes = config.memory_bytes > 0 ? config.memory_bytes : model::device_memory_bytes(devices.first);
    return devices;
  }
  for (const uint32_t gpu : config.gpus) {
    TESSERA_ASSIGN_OR_RETURN(const std::string device,
                             model::choose_device(config.device.kind == config::Device::Kind::kCpu
                                                      ? std::string("cpu")
                                                      : fmt::format("cuda:{}", gpu)));
    devices.box.devices.push_back(device);
  }
  TESSERA_ASSIGN_OR_RETURN(auto groups, collective::make_groups(devices.box.devices, kPatience));
  for (auto& group : groups) devices.box.groups.push_back(std::move(group));
  devices.box.zero_stage = config.zero_stage;
  devices.first = devices.box.devices.front();
  const auto count = static_cast<uint32_t>(devices.box.devices.size());
  devices.description = fmt::format("{} and {} more, zero_stage {}", devices.first, count - 1, config.zero_stage);
  devices.memory_bytes = core::equivalent_memory_bytes(memory_of(config, devices.box), count, config.zero_stage);
  return devices;
}

}  // namespace tessera::apps
