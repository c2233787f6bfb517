#include "data/shard_writer.h"

#include <algorithm>
#include <cstring>

#include "tessera/data/token_shard.h"

namespace tessera::data {

ShardWriter::ShardWriter(std::string folder, std::string split, uint32_t token_bytes,
                         uint32_t vocab, uint64_t shard_tokens)
    : folder_(std::move(folder)),
      split_(std::move(split)),
      token_bytes_(token_bytes),
      vocab_(vocab),
      shard_tokens_(shard_tokens) {
  TESSERA_CHECK(shard_tokens_ > 0);
  TESSERA_CHECK(token_bytes_ == 4 || (token_bytes_ == 2 && vocab_ <= 65536));
}

Status ShardWriter::append(const uint32_t* ids, size_t count) {
  while (count > 0) {
    if (file_ == nullptr) TESSERA_RETURN_IF_ERROR(open_shard());
    core::TokenShard& shard = shards_.back();
    const size_t now = std::min<uint64_t>(count, shard_tokens_ - shard.tokens);
    // Little-endian: the low bytes of an id come first.
    std::string bytes(now * token_bytes_, '\0');
    for (size_t i = 0; i < now; ++i) {
      TESSERA_CHECK(ids[i] < vocab_);
      std::memcpy(bytes.data() + i * token_bytes_, &ids[i], token_bytes_);
    }
    TESSERA_RETURN_IF_ERROR(file_->append(bytes));
    shard.tokens += now;
    tokens_ += now;
    ids += now;
    count -= now;
    if (shard.tokens == shard_tokens_) TESSERA_RETURN_IF_ERROR(close_shard());
  }
  return ok_status();
}

StatusOr<std::vector<core::TokenShard>> ShardWriter::finish() {
  if (file_ != nullptr) TESSERA_RETURN_IF_ERROR(close_shard());
  return std::move(shards_);
}

Status ShardWriter::open_shard() {
  core::TokenShard shard;
  shard.file = fmt::format("{}-{:05}.tok", split_, shards_.size());
  TESSERA_ASSIGN_OR_RETURN(file_, SequentialWriter::create(folder_ + "/" + shard.file));
  shards_.push_back(shard);
  return file_->append(encode_shard_header(token_bytes_, vocab_, 0));
}

// The header holds the token count, which is known only now; so the digest takes a second look at
// the file.
Status ShardWriter::close_shard() {
  core::TokenShard& shard = shards_.back();
  const std::string header = encode_shard_header(token_bytes_, vocab_, shard.tokens);
  TESSERA_RETURN_IF_ERROR(file_->overwrite(0, header));
  TESSERA_RETURN_IF_ERROR(file_->finish());
  file_.reset();
  shard.bytes = header.size() + shard.tokens * token_bytes_;
  TESSERA_ASSIGN_OR_RETURN(shard.digest, digest_file(folder_ + "/" + shard.file));
  return ok_status();
}

}  // namespace tessera::data
