#include "live_blobs.h"

#include "tessera/node/objects.h"

namespace tessera::node {

std::vector<Digest> live_objects(const core::OrchestratorState& state) {
  std::vector<Digest> objects;
  for (const core::TokenShard& shard : state.data.train) objects.push_back(shard.object);
  for (const core::StageRecord& stage : state.stages) {
    objects.push_back(stage.state);
    objects.push_back(stage.published_state);
    if (!stage.past.empty()) objects.push_back(stage.past.back().from);
    for (const core::PastMerge& past : stage.past) {
      for (const core::UploadRef& upload : past.uploads) objects.push_back(upload.object);
      for (const core::ShardResult& result : past.results) {
        for (const core::ResultCopy& copy : result.copies) objects.push_back(copy.object);
      }
    }
    if (!stage.merge) continue;
    for (const auto& [miner, upload] : stage.merge->uploads) objects.push_back(upload.object);
    for (const core::MergeShard& shard : stage.merge->shards) {
      for (const auto& copy : {shard.copy_a, shard.copy_b}) {
        if (copy) objects.push_back(copy->object);
      }
      for (const core::ResultCopy& copy : shard.copies) objects.push_back(copy.object);
    }
  }
  for (const core::MinerRecord& miner : state.miners) {
    if (miner.upload) objects.push_back(*miner.upload);
    if (miner.checkpoint) objects.push_back(miner.checkpoint->object);
    if (miner.resumed && !miner.ready) objects.push_back(miner.resumed->local_state);
  }
  const auto add_segment = [&](const core::SegmentCommit& commit) {
    objects.push_back(commit.state);
    for (const core::OlderWeights& older : commit.older) objects.push_back(older.object);
  };
  const auto add_payloads = [&](const std::vector<core::Receipt>& receipts) {
    for (const core::Receipt& receipt : receipts) {
      objects.insert(objects.end(), {receipt.input_hash, receipt.output_hash, receipt.gradient_in_hash, receipt.gradient_out_hash});
    }
  };
  for (const auto& [miner, segment] : state.audits.under_way) {
    if (segment.begin) add_segment(*segment.begin);
    add_payloads(segment.receipts);
  }
  for (const auto& [number, audit] : state.audits.open) {
    add_segment(audit.task.begin);
    add_segment(audit.task.end);
    add_payloads(audit.task.receipts);
    objects.push_back(audit.task.base);
    objects.push_back(audit.task.next_base);
    if (audit.task.upload) objects.push_back(audit.task.upload->object);
    objects.push_back(audit.task.upload_base);
  }
  for (const auto& [node, resumed] : state.resumable) objects.push_back(resumed.local_state);
  return objects;
}

std::set<Digest> blobs_of(ports::BlobLink& blobs, const std::vector<Digest>& objects) {
  std::set<Digest> names;
  for (const Digest& object : objects) {
    if (object.is_zero() || !names.insert(object).second) continue;
    const StatusOr<core::ObjectManifest> manifest = get_manifest(blobs, object);
    if (manifest.ok()) names.insert(manifest->chunks.begin(), manifest->chunks.end());
  }
  return names;
}

}  // namespace tessera::node
