// One worker's compute weights in a box of several: whole (ZeRO stages 0 to 2) or a shard (3).
//
// Stages 1 and 2: every worker writes its slice of each unit of a new version, and the units are gathered while the next
// forward pass begins: it waits for a unit where it first reads it.
// Stage 3: a version is the worker's shard. A unit is gathered into one of two slots when the pass comes to it, and the
// next one, in the pass' direction, into the other slot meanwhile.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "model/box_group.h"
#include "model/shard_layout.h"
#include "model/stage_function.h"
#include "tessera/core/run_spec.h"

namespace tessera::model {

// Time for which a worker's computation stood still until gathered weights were there; on CUDA of the device's stream.
class GatherStall {
 public:
  explicit GatherStall(const at::Device& device) : device_(device) {}
  void measure(bool on) { on_ = on; }
  // Waits and times it, if that is on.
  void wait(Pending* pending);
  // Since the last call, after the device's work is done; the host waits for it.
  double take_milliseconds();

 private:
  struct Interval;
  const at::Device device_;
  bool on_ = false;
  double milliseconds_ = 0;
  std::vector<std::shared_ptr<Interval>> intervals_;
};

// Used by the worker's thread; versions may be dropped by another.
class ShardedWeights {
 public:
  ShardedWeights(const core::RunSpec& spec, StageIndex stage, const ShardLayout& layout, uint32_t zero_stage,
                 std::shared_ptr<const BoxGroup> group, const at::TensorOptions& compute);

  // A new version is written slice by slice: begin(), then for each unit its slice(), then finish_unit(), then publish() or,
  // where it is not wanted after all, discard().
  void begin();
  at::Tensor slice(size_t unit) const;  // [layout.slice_count(unit)], of the compute type
  void finish_unit(size_t unit);
  void publish();
  void discard();

  const std::shared_ptr<const StageWeights>& current() const { return current_; }
  // Versions before the current one that microbatches in flight hold, in their order.
  std::vector<std::shared_ptr<const StageWeights>> older();
  // A published version's slice of a unit, of this worker.
  at::Tensor slice(const StageWeights& version, size_t unit) const;
  GatherStall& stall() { return *stall_; }
  int64_t version_bytes() const;  // of one version
  int64_t slot_bytes() const;     // of the gathered units

 private:
  struct Slots;
  class Version;
  class WholeVersion;
  class ShardVersion;

  uint32_t own_slice() const { return layout_.shards() == 1 ? 0 : group_->rank(); }
  at::Tensor slice(const at::Tensor& values, size_t unit) const;

  const core::RunSpec spec_;
  const StageIndex stage_;
  const ShardLayout layout_;
  const uint32_t zero_stage_;
  const std::shared_ptr<const BoxGroup> group_;
  const at::TensorOptions compute_;
  const int64_t padding_;  // behind the last unit
  std::shared_ptr<GatherStall> stall_;
  std::shared_ptr<Slots> slots_;  // stage 3
  at::Tensor next_;               // being written
  std::shared_ptr<WholeVersion> next_whole_;
  std::shared_ptr<const StageWeights> current_;
  std::map<uint64_t, std::weak_ptr<const StageWeights>> versions_;
};

}  // namespace tessera::model
