// How a stage is cut for the GPUs of a box: every value in one slice, units apart.
#include "model/shard_layout.h"

#include <gtest/gtest.h>

#include "model/pipeline.h"

namespace tessera::model {
namespace {

TEST(ShardLayout, OneShardIsTheFlatVector) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  for (StageIndex stage = 0; stage < 3; ++stage) {
    const ShardLayout layout(spec, stage, 1);
    EXPECT_EQ(layout.count(), static_cast<int64_t>(core::stage_value_count(spec, stage)));
    EXPECT_EQ(layout.padded_count(), layout.count());
    for (const ShardUnit& unit : layout.units()) EXPECT_EQ(unit.padded_offset, unit.offset);
  }
}

TEST(ShardLayout, SlicesCoverEveryValueOnce) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt4);
  for (const uint32_t shards : {2u, 3u, 4u, 8u}) {
    for (StageIndex stage = 0; stage < 3; ++stage) {
      const ShardLayout layout(spec, stage, shards);
      EXPECT_EQ(layout.padded_count() % shards, 0);
      int64_t covered = 0;
      for (size_t unit = 0; unit < layout.units().size(); ++unit) {
        for (uint32_t shard = 0; shard < shards; ++shard) {
          int64_t next = 0;
          for (const ShardLayout::Piece& piece : layout.pieces(unit, shard)) {
            EXPECT_EQ(piece.offset, next);  // pieces lie side by side
            next += piece.count;
          }
          EXPECT_EQ(next, layout.filled_count(unit, shard));
          EXPECT_LE(next, layout.slice_count(unit));
          covered += next;
        }
      }
      EXPECT_EQ(covered, layout.count());
    }
  }
}

TEST(ShardLayout, UnitsAreInTheOrderOfTheStage) {
  const RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kBf16);
  const ShardLayout layout(spec, 1, 2);
  const core::LayerRange layers = core::layers_of(spec, 1);
  ASSERT_EQ(layout.units().size(), 2 * (layers.end - layers.begin) + 2);
  EXPECT_EQ(layout.units().front().count, 0);  // kind none has no modules at its boundaries
  EXPECT_EQ(layout.units().back().count, 0);
  EXPECT_EQ(layout.unit_at(0), 1u);
  EXPECT_EQ(layout.unit_at(layout.count() - 1), layout.units().size() - 2);
  EXPECT_EQ(layout.largest_unit(), std::max(layout.units()[1].padded_count, layout.units()[2].padded_count));
}

}  // namespace
}  // namespace tessera::model
