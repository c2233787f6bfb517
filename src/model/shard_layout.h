// How a stage's flat vector is cut for the GPUs of a box: unit by unit (core::unit_of), every unit padded to equal slices,
// slice i for worker i. A worker's shard is its slices of all units, one after another. No torch.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/core/run_spec.h"
#include "tessera/core/stage_layout.h"

namespace tessera::model {

struct ShardUnit {
  int64_t offset = 0;         // in the stage's flat vector
  int64_t count = 0;
  int64_t padded_offset = 0;  // in the padded vector
  int64_t padded_count = 0;   // whole slices
  std::vector<core::TensorLayout> tensors;  // offsets from the unit's beginning
};

// One shard: nothing is padded, and the padded vector is the flat vector.
class ShardLayout {
 public:
  ShardLayout(const core::RunSpec& spec, StageIndex stage, uint32_t shards);

  // 0 the receiver or embedding, 1 + 2 i the attention of layer i, 2 + 2 i its feed-forward half, then the sender or norm and
  // output head; the first and the last may be empty.
  const std::vector<ShardUnit>& units() const { return units_; }
  uint32_t shards() const { return shards_; }
  int64_t count() const { return count_; }
  int64_t padded_count() const { return padded_count_; }
  int64_t shard_count() const { return padded_count_ / shards_; }
  int64_t largest_unit() const;  // padded
  // Where values [offset, offset + count) of the flat vector lie: all within one unit.
  size_t unit_at(int64_t offset) const;

  // Of a unit: the values of a slice, its place in every shard, and the part of a slice that is not padding.
  int64_t slice_count(size_t unit) const { return units_[unit].padded_count / shards_; }
  int64_t slice_offset(size_t unit) const { return units_[unit].padded_offset / shards_; }
  int64_t filled_count(size_t unit, uint32_t shard) const;

  // The tensors of a unit that lie in a slice, cut to it; offsets from the slice's beginning. `shape` is the whole
  // tensor's.
  struct Piece {
    const core::TensorLayout* tensor = nullptr;
    int64_t offset = 0;
    int64_t count = 0;
  };
  std::vector<Piece> pieces(size_t unit, uint32_t shard) const;

 private:
  uint32_t shards_ = 1;
  int64_t count_ = 0;
  int64_t padded_count_ = 0;
  std::vector<ShardUnit> units_;
};

}  // namespace tessera::model
