// Training data on its way from a dataset folder to the miners.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tessera/config/run_config.h"
#include "tessera/data/dataset.h"
#include "tessera/data/token_shard.h"
#include "tessera/ports/links.h"
#include "tessera/ports/token_source.h"

namespace tessera::apps {

// The dataset a run's configuration names: data.path, or `default_folder`; built from data.text if it is not there yet.
// Checks that it fits the model.
StatusOr<data::DatasetManifest> open_dataset(const config::RunConfig& config, const std::string& default_folder);

// Stores every training shard as an object; the plan that is returned names the objects.
StatusOr<core::DataPlan> publish_dataset(const data::DatasetManifest& dataset, ports::BlobLink& blobs);

// Shards fetched by name into `folder`, once each. Used by one thread.
class ShardCache final : public ports::TokenSource {
 public:
  ShardCache(std::string folder, ports::BlobLink& blobs) : folder_(std::move(folder)), blobs_(blobs) {}
  StatusOr<std::vector<uint32_t>> read(const core::TokenShard& shard, uint64_t first, uint64_t count) override;

 private:
  StatusOr<data::TokenShardReader*> open(const core::TokenShard& shard);
  const std::string folder_;
  ports::BlobLink& blobs_;
  std::map<Digest, std::unique_ptr<data::TokenShardReader>> readers_;
};

}  // namespace tessera::apps
