#include "model/shard_layout.h"

#include <algorithm>

#include "tessera/base/status.h"

namespace tessera::model {
namespace {

// Slices begin at whole multiples of it, so that kernels and NCCL meet aligned memory.
constexpr int64_t kSliceStep = 64;

size_t unit_index(const core::TensorLayout& tensor, const core::LayerRange& layers) {
  const std::string name = core::unit_of(tensor);
  if (name == "receiver") return 0;
  if (name == "sender") return 2 * (layers.end - layers.begin) + 1;
  return 2 * (std::stoul(name.substr(sizeof("layer"))) - layers.begin) + (name.ends_with("attention") ? 1 : 2);
}

}  // namespace

ShardLayout::ShardLayout(const core::RunSpec& spec, StageIndex stage, uint32_t shards) : shards_(shards) {
  TESSERA_CHECK(shards >= 1);
  const core::LayerRange layers = core::layers_of(spec, stage);
  units_.resize(2 * (layers.end - layers.begin) + 2);
  for (core::TensorLayout tensor : core::stage_layout(spec, stage)) {
    ShardUnit& unit = units_[unit_index(tensor, layers)];
    tensor.offset = static_cast<uint64_t>(unit.count);
    unit.count += static_cast<int64_t>(tensor.count);
    unit.tensors.push_back(std::move(tensor));
  }
  const int64_t step = shards == 1 ? 1 : kSliceStep * shards;
  for (ShardUnit& unit : units_) {
    unit.offset = count_;
    unit.padded_offset = padded_count_;
    unit.padded_count = (unit.count + step - 1) / step * step;
    count_ += unit.count;
    padded_count_ += unit.padded_count;
  }
}

int64_t ShardLayout::largest_unit() const {
  int64_t largest = 0;
  for (const ShardUnit& unit : units_) largest = std::max(largest, unit.padded_count);
  return largest;
}

size_t ShardLayout::unit_at(int64_t offset) const {
  for (size_t unit = 0; unit < units_.size(); ++unit) {
    if (offset < units_[unit].offset + units_[unit].count) return unit;
  }
  TESSERA_CHECK(false && "no unit has this offset");
  return 0;
}

int64_t ShardLayout::filled_count(size_t unit, uint32_t shard) const {
  const int64_t slice = slice_count(unit);
  return std::clamp<int64_t>(units_[unit].count - slice * shard, 0, slice);
}

std::vector<ShardLayout::Piece> ShardLayout::pieces(size_t unit, uint32_t shard) const {
  const int64_t begin = slice_count(unit) * shard, end = begin + slice_count(unit);
  std::vector<Piece> pieces;
  for (const core::TensorLayout& tensor : units_[unit].tensors) {
    const int64_t first = std::max(begin, static_cast<int64_t>(tensor.offset));
    const int64_t last = std::min(end, static_cast<int64_t>(tensor.offset + tensor.count));
    if (first < last) pieces.push_back({&tensor, first - begin, last - first});
  }
  return pieces;
}

}  // namespace tessera::model
