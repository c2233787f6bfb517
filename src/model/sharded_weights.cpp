#include "model/sharded_weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <utility>

#include "model/stage_pass.h"
#include "tessera/base/status.h"

#ifdef TESSERA_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace tessera::model {

struct GatherStall::Interval {
#ifdef TESSERA_WITH_CUDA
  at::cuda::CUDAEvent begin{cudaEventDefault}, end{cudaEventDefault};
#endif
};

void GatherStall::wait(Pending* pending) {
  if (!*pending || !on_) return finish(pending);
#ifdef TESSERA_WITH_CUDA
  if (device_.is_cuda()) {
    auto interval = std::make_shared<Interval>();
    const auto stream = c10::cuda::getCurrentCUDAStream(device_.index());
    interval->begin.record(stream);
    finish(pending);
    interval->end.record(stream);
    intervals_.push_back(std::move(interval));
    return;
  }
#endif
  const auto begin = std::chrono::steady_clock::now();
  finish(pending);
  milliseconds_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

double GatherStall::take_milliseconds() {
#ifdef TESSERA_WITH_CUDA
  for (const auto& interval : intervals_) {
    interval->end.synchronize();
    milliseconds_ += interval->begin.elapsed_time(interval->end);
  }
#endif
  intervals_.clear();
  return std::exchange(milliseconds_, 0);
}

class ShardedWeights::Version : public WeightSource {
 public:
  explicit Version(at::Tensor values) : values_(std::move(values)) {}
  // The padded vector or, in stage 3, the worker's shard.
  const at::Tensor& values() const { return values_; }

 private:
  const at::Tensor values_;  // outlives the gathers of it and into it
};

// ---- stages 0 to 2

// Fetches what its flat vector still lacks.
class ShardedWeights::WholeVersion final : public Version {
 public:
  WholeVersion(at::Tensor flat, size_t units, std::shared_ptr<GatherStall> stall)
      : Version(std::move(flat)), stall_(std::move(stall)), gathers_(units) {}
  void add(size_t unit, Pending gather) { gathers_[unit] = std::move(gather); }
  void begin(size_t unit, PassDirection) override { stall_->wait(&gathers_[unit]); }

 private:
  const std::shared_ptr<GatherStall> stall_;
  std::vector<Pending> gathers_;
};

// ---- stage 3

// Two places for gathered units, which alternate among the units that are not empty.
struct ShardedWeights::Slots {
  struct Slot {
    at::Tensor memory;
    at::Tensor shard;  // of what is here, or on its way; not only a name: it must outlive the gather
    size_t unit = 0;
    Pending gather;
  };

  const ShardLayout layout;
  const std::shared_ptr<const BoxGroup> group;
  const int64_t padding;
  std::array<Slot, 2> slots;
  std::vector<size_t> order;     // units that are not empty
  std::vector<size_t> place_in;  // of a unit in the order

  Slots(const ShardLayout& shard_layout, std::shared_ptr<const BoxGroup> box, int64_t behind_last,
        const at::TensorOptions& compute)
      : layout(shard_layout), group(std::move(box)), padding(behind_last), place_in(shard_layout.units().size(), 0) {
    for (size_t unit = 0; unit < layout.units().size(); ++unit) {
      place_in[unit] = order.size();
      if (layout.units()[unit].count > 0) order.push_back(unit);
    }
    std::array<int64_t, 2> largest{0, 0};
    for (const size_t unit : order) {
      int64_t& size = largest[place_in[unit] % 2];
      size = std::max(size, layout.units()[unit].padded_count + (unit + 1 == layout.units().size() ? padding : 0));
    }
    for (size_t i = 0; i < 2; ++i) slots[i].memory = at::zeros({largest[i]}, compute);
  }

  Slot& slot_of(size_t unit) { return slots[place_in[unit] % 2]; }

  void fetch(const at::Tensor& shard, size_t unit) {
    Slot& slot = slot_of(unit);
    if (slot.shard.is_same(shard) && slot.unit == unit) return;
    finish(&slot.gather);
    const int64_t count = layout.units()[unit].padded_count;
    if (unit + 1 == layout.units().size() && padding > 0) slot.memory.narrow(0, count, padding).zero_();
    slot.shard = shard;
    slot.unit = unit;
    slot.gather = group->all_gather(shard.narrow(0, layout.slice_offset(unit), layout.slice_count(unit)),
                                    slot.memory.narrow(0, 0, count));
  }

  void begin(const at::Tensor& shard, size_t unit, PassDirection direction, GatherStall* stall) {
    if (layout.units()[unit].count == 0) return;
    fetch(shard, unit);
    const size_t place = place_in[unit];
    const bool forward = direction == PassDirection::kForward;
    // What comes after it is fetched while it is used.
    if (forward ? place + 1 < order.size() : place > 0) fetch(shard, order[forward ? place + 1 : place - 1]);
    stall->wait(&slot_of(unit).gather);
  }
};

class ShardedWeights::ShardVersion final : public Version {
 public:
  ShardVersion(at::Tensor shard, std::shared_ptr<Slots> slots, std::shared_ptr<GatherStall> stall)
      : Version(std::move(shard)), slots_(std::move(slots)), stall_(std::move(stall)) {}
  void begin(size_t unit, PassDirection direction) override { slots_->begin(values(), unit, direction, stall_.get()); }
  void prefetch_first() { slots_->fetch(values(), slots_->order.front()); }

 private:
  const std::shared_ptr<Slots> slots_;
  const std::shared_ptr<GatherStall> stall_;
};

// ----

ShardedWeights::ShardedWeights(const core::RunSpec& spec, StageIndex stage, const ShardLayout& layout, uint32_t zero_stage,
                               std::shared_ptr<const BoxGroup> group, const at::TensorOptions& compute)
    : spec_(spec),
      stage_(stage),
      layout_(layout),
      zero_stage_(zero_stage),
      group_(std::move(group)),
      compute_(compute),
      padding_(weight_padding(spec, stage)),
      stall_(std::make_shared<GatherStall>(compute.device())) {
  if (zero_stage_ == 3) slots_ = std::make_shared<Slots>(layout_, group_, padding_, compute_);
}

void ShardedWeights::begin() {
  if (zero_stage_ == 3) {
    next_ = at::empty({layout_.shard_count()}, compute_);
    return;
  }
  next_ = at::empty({layout_.padded_count() + padding_}, compute_);
  next_.narrow(0, layout_.padded_count(), padding_).zero_();
  next_whole_ = std::make_shared<WholeVersion>(next_, layout_.units().size(), stall_);
}

at::Tensor ShardedWeights::slice(const at::Tensor& values, size_t unit) const {
  const int64_t first = zero_stage_ == 3 ? layout_.slice_offset(unit)
                                         : layout_.units()[unit].padded_offset + own_slice() * layout_.slice_count(unit);
  return values.narrow(0, first, layout_.slice_count(unit));
}

at::Tensor ShardedWeights::slice(size_t unit) const { return slice(next_, unit); }

at::Tensor ShardedWeights::slice(const StageWeights& version, size_t unit) const {
  return slice(static_cast<const Version&>(*version.source).values(), unit);
}

std::vector<std::shared_ptr<const StageWeights>> ShardedWeights::older() {
  std::erase_if(versions_, [](const auto& entry) { return entry.second.expired(); });
  std::vector<std::shared_ptr<const StageWeights>> held;
  for (const auto& [version, weights] : versions_) {
    if (auto one = weights.lock(); one && one != current_) held.push_back(std::move(one));
  }
  return held;
}

void ShardedWeights::finish_unit(size_t unit) {
  const ShardUnit& place = layout_.units()[unit];
  if (place.count == 0) return;
  // Padding is read behind the output head; it must be zeros.
  const int64_t filled = layout_.filled_count(unit, own_slice());
  const at::Tensor own = slice(unit);
  own.narrow(0, filled, own.numel() - filled).zero_();
  if (zero_stage_ == 0 || zero_stage_ == 3) return;
  next_whole_->add(unit, group_->all_gather(own, next_.narrow(0, place.padded_offset, place.padded_count)));
}

void ShardedWeights::discard() {
  next_whole_.reset();  // waits for its gathers, which read and write what follows
  next_.reset();
}

void ShardedWeights::publish() {
  const uint64_t version = current_ ? current_->version + 1 : 0;
  const LocateValues locate = [&](int64_t offset, int64_t count) {
    const size_t unit = layout_.unit_at(offset);
    const int64_t within = offset - layout_.units()[unit].offset;
    if (zero_stage_ == 3) return slots_->slot_of(unit).memory.narrow(0, within, count);
    return next_.narrow(0, layout_.units()[unit].padded_offset + within, count);
  };
  auto weights = std::make_shared<StageWeights>(
      make_stage_weights(spec_, stage_, locate, version, /*requires_grad=*/true));
  if (zero_stage_ == 3) {
    const auto source = std::make_shared<ShardVersion>(next_, slots_, stall_);
    source->prefetch_first();
    weights->source = source;
  } else {
    weights->source = std::exchange(next_whole_, nullptr);
  }
  current_ = std::move(weights);
  std::erase_if(versions_, [](const auto& entry) { return entry.second.expired(); });
  versions_[version] = current_;
  next_.reset();
}

int64_t ShardedWeights::version_bytes() const {
  const int64_t count = zero_stage_ == 3 ? layout_.shard_count() : layout_.padded_count() + padding_;
  return count * static_cast<int64_t>(compute_.dtype().itemsize());
}

int64_t ShardedWeights::slot_bytes() const {
  return slots_ ? static_cast<int64_t>(slots_->slots[0].memory.nbytes() + slots_->slots[1].memory.nbytes()) : 0;
}

}  // namespace tessera::model
