#include "miner/devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "tessera/base/log.h"
#include "tessera/collective/groups.h"
#include "tessera/core/audit_messages.h"
#include "tessera/core/memory_plan.h"

namespace tessera::apps {
namespace {

constexpr std::string_view kGpuPrefix = "cuda:";
// Of one operation between the workers; longer than any takes that does not hang.
constexpr std::chrono::milliseconds kPatience{60000};

// Leaves weighted means to the CPU: the kernels gain nothing beside fetching and hashing the blocks (docs/performance.md, Merges),
// and would take time from training.
class TrimmedOnly final : public kernels::MergeReducer {
 public:
  explicit TrimmedOnly(std::unique_ptr<kernels::MergeReducer> reducer) : reducer_(std::move(reducer)) {}
  bool takes(const kernels::MergeReduction& reduction) const override { return reduction.trimmed && reducer_->takes(reduction); }
  Status reduce(const kernels::MergeReduction& reduction) override { return reducer_->reduce(reduction); }

 private:
  const std::unique_ptr<kernels::MergeReducer> reducer_;
};

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
  devices.description = core::box_description(devices.first, {count, config.zero_stage});
  devices.memory_bytes = core::equivalent_memory_bytes(memory_of(config, devices.box), count, config.zero_stage);
  return devices;
}

StatusOr<std::unique_ptr<kernels::MergeReducer>> open_reducer(const config::MinerConfig& config, const MinerDevices& devices) {
  using Wanted = config::MinerConfig::ReduceDevice;
  const bool has_gpu = devices.first.compare(0, kGpuPrefix.size(), kGpuPrefix) == 0;
  if (config.reduce_device == Wanted::kCpu || (config.reduce_device == Wanted::kAuto && !has_gpu)) return nullptr;
  if (!has_gpu) {
    return failed_precondition("reduce_device: gpu is wanted, but the miner's device is {}. Use cpu or auto", devices.first);
  }
  int index = 0;
  std::from_chars(devices.first.data() + kGpuPrefix.size(), devices.first.data() + devices.first.size(), index);
  auto reducer = kernels::make_cuda_merge_reducer(index);
  if (config.reduce_device == Wanted::kGpu) return reducer;
  if (reducer.ok()) return std::make_unique<TrimmedOnly>(*std::move(reducer));
  spdlog::warn("merges are reduced on the CPU: {}", message_of(reducer.status()));
  return nullptr;
}

}  // namespace tessera::apps
