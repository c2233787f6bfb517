// Token shard files.
//   Tessera: 32-byte header ("TSTK", u32 version 1, u32 bytes per token 2|4, u32 vocab, u64 tokens, u64 reserved 0), ids.
//   llm.c:   256 int32 header (20240520, version 1, token count), uint16 ids.   nanoGPT: raw uint16 ids, no header.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::data {

inline constexpr uint32_t kTokenShardVersion = 1;

struct ShardInfo {
  enum class Format { kTessera, kLlmC, kRaw } format = Format::kTessera;
  uint32_t token_bytes = 2;
  uint32_t vocab = 0;       // 0 where the format does not say
  uint64_t tokens = 0;
  uint64_t data_offset = 0; // bytes
};

// Reads and checks the header against the file's size. Raw uint16 only if the name ends in .bin and nothing else matches.
StatusOr<ShardInfo> inspect_shard(std::string_view header, uint64_t file_bytes, const std::string& name);

// A shard file mapped or read on demand. Thread-safe reads.
class TokenShardReader {
 public:
  static StatusOr<std::unique_ptr<TokenShardReader>> open(const std::string& path);
  ~TokenShardReader();
  const ShardInfo& info() const { return info_; }
  // `count` ids from `first`. OUT_OF_RANGE past the end.
  StatusOr<std::vector<uint32_t>> read(uint64_t first, uint64_t count) const;

 private:
  TokenShardReader() = default;
  ShardInfo info_;
  std::string path_;
  int fd_ = -1;
};

std::string encode_shard_header(uint32_t token_bytes, uint32_t vocab, uint64_t tokens);

}  // namespace tessera::data
