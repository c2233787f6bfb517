// Writes the shards of one split: <split>-00000.tok, <split>-00001.tok, ... of at most
// `shard_tokens` ids each. Every file is on the disk before finish() returns. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/sequential_file.h"
#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"

namespace tessera::data {

class ShardWriter {
 public:
  ShardWriter(std::string folder, std::string split, uint32_t token_bytes, uint32_t vocab,
              uint64_t shard_tokens);
  // Ids are below `vocab` (checked: a tokenizer that breaks this is a bug).
  Status append(const uint32_t* ids, size_t count);
  uint64_t tokens() const { return tokens_; }
  StatusOr<std::vector<core::TokenShard>> finish();

 private:
  Status open_shard();
  Status close_shard();

  const std::string folder_;
  const std::string split_;
  const uint32_t token_bytes_;
  const uint32_t vocab_;
  const uint64_t shard_tokens_;
  uint64_t tokens_ = 0;
  std::unique_ptr<SequentialWriter> file_;  // the open shard: shards_.back()
  std::vector<core::TokenShard> shards_;
};

}  // namespace tessera::data
