#include "live_blobs.h"

#include "tessera/node/objects.h"

namespace tessera::node {

std::vector<Digest> live_objects(const core::OrchestratorState& state) {
  std::vector<Digest> objects;
  for (const core::TokenShard& shard : state.data.train) objects.push_back(shard.object);
  for (const core::StageRecord& stage : state.stages) {
    objects.push_back(stage.state);
    objects.push_back(stage.published_state);
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
