#include "tessera/node/blob_asks.h"

#include <algorithm>

#include "tessera/core/merge_planes.h"
#include "tessera/core/stage_layout.h"

namespace tessera::node {
namespace {

// Bytes a value. fp32 with its scale is the largest format of an upload, a state is base and momentum, a local state masters,
// moments, residual and partial gradient; each twice, for manifests, small blocks and a transfer that was begun anew.
constexpr uint64_t kUploadBytes = 2 * 5;
constexpr uint64_t kStateBytes = 2 * 8;
constexpr uint64_t kLocalStateBytes = 2 * 20;
constexpr uint64_t kObjectBytes = 1 << 16;         // of any object, beside its content
constexpr uint64_t kMicrobatchesHeld = 64;
constexpr uint64_t kTensorsOfMicrobatch = 2;       // that one miner makes of it

// A local state, and the versions of the weights that microbatches in flight use.
uint64_t segment_bytes(const core::RunSpec& spec) {
  const uint64_t versions = std::min<uint64_t>(core::kMaxOlderWeights, 1 + kMicrobatchesHeld / std::max(1u, spec.training.microbatches_per_step));
  return kLocalStateBytes + 2 * sizeof(float) * versions;
}

uint64_t tensor_bytes(const core::RunSpec& spec) {
  return payload_bytes(spec.boundary.codec, spec.tokens_per_microbatch(), static_cast<size_t>(core::boundary_width(spec))) + kObjectBytes;
}

}  // namespace

BlobShare blob_share(const core::OrchestratorState& state, uint64_t share_bytes) {
  uint64_t values = 0;
  for (const core::StageRecord& stage : state.stages) values = std::max(values, stage.values);
  BlobShare share{.base_bytes = share_bytes, .most_bytes = 0};
  if (state.spec.audit.enabled) share.base_bytes += 2 * kMicrobatchesHeld * kTensorsOfMicrobatch * tensor_bytes(state.spec);
  const uint64_t asked_at_once = 2 * kUploadBytes * core::merge_planes(state.spec.merge) + kStateBytes + kLocalStateBytes +
                                 segment_bytes(state.spec);
  share.most_bytes = 2 * share.base_bytes + 2 * asked_at_once * values;
  return share;
}

uint64_t BlobAsks::news_in(const core::OrchestratorState& state, const core::MinerRecord& miner, const core::SyncAnswer& answer,
                           uint64_t receipts) {
  if (!miner.placed) return 0;
  Asked& asked = asked_[miner.index];
  const uint64_t values = state.stages[miner.stage].values;
  uint64_t bytes = 0;
  if (answer.merge && answer.merge->phase == core::MergePhase::kSnapshot && asked.upload < answer.merge->target) {
    asked.upload = answer.merge->target;
    bytes += kUploadBytes * core::merged_values(state.spec.merge, values) + kObjectBytes;
  }
  if (answer.merge && !answer.merge->tasks.empty()) {
    if (asked.reduced != answer.merge->target) asked.shards.clear();
    asked.reduced = answer.merge->target;
    for (const core::ShardTask& task : answer.merge->tasks) {
      if (!asked.shards.insert(task.shard).second) continue;
      bytes += kUploadBytes * task.block_count * state.spec.merge.block_values + kObjectBytes;
    }
  }
  if (answer.publish_state && asked.published != miner.epoch) {
    asked.published = miner.epoch;
    bytes += kStateBytes * values + kObjectBytes;
  }
  if (answer.checkpoint > asked.checkpoint) {
    asked.checkpoint = answer.checkpoint;
    bytes += kLocalStateBytes * values + kObjectBytes;
  }
  if (!state.spec.audit.enabled) return bytes;
  if (miner.ready && asked.segment != answer.segment_known) {
    asked.segment = answer.segment_known;
    bytes += segment_bytes(state.spec) * values + kObjectBytes;
  }
  return bytes + receipts * kTensorsOfMicrobatch * tensor_bytes(state.spec);
}

}  // namespace tessera::node
