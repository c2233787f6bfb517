#include "tessera/data/token_shard.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "data/sequential_file.h"
#include "tessera/base/bytes.h"

namespace tessera::data {
namespace {

constexpr std::string_view kMagic = "TSTK";
constexpr uint64_t kHeaderBytes = 32;
constexpr int32_t kLlmCMagic = 20240520;
constexpr int32_t kLlmCVersion = 1;
constexpr uint64_t kLlmCHeaderBytes = 256 * sizeof(int32_t);
constexpr uint64_t kRawTokenBytes = 2;

// Data of `tokens` ids must fill the file exactly; written so that absurd counts can't overflow.
Status check_size(const ShardInfo& info, uint64_t file_bytes, const std::string& name) {
  if (file_bytes < info.data_offset || (file_bytes - info.data_offset) % info.token_bytes != 0 ||
      (file_bytes - info.data_offset) / info.token_bytes != info.tokens) {
    return data_loss(
        "{}: its header says {} tokens of {} bytes after a header of {}, but the file has {} "
        "bytes: it "
        "is truncated or corrupt; build or copy it again",
        name, info.tokens, info.token_bytes, info.data_offset, file_bytes);
  }
  return ok_status();
}

StatusOr<ShardInfo> inspect_tessera(std::string_view header, uint64_t file_bytes,
                                    const std::string& name) {
  if (header.size() < kHeaderBytes) {
    return data_loss(
        "{}: {} bytes, less than the header of a token shard ({}): it is truncated; "
        "build or copy it again",
        name, file_bytes, kHeaderBytes);
  }
  ByteReader reader(header.substr(kMagic.size()));
  const uint32_t version = reader.number<uint32_t>();
  ShardInfo info;
  info.token_bytes = reader.number<uint32_t>();
  info.vocab = reader.number<uint32_t>();
  info.tokens = reader.number<uint64_t>();
  const uint64_t reserved = reader.number<uint64_t>();
  info.data_offset = kHeaderBytes;
  if (version != kTokenShardVersion) {
    return invalid_argument(
        "{}: token shard version {}, this program reads version {}; use the "
        "program that wrote it or build the dataset again",
        name, version, kTokenShardVersion);
  }
  if (info.token_bytes != 2 && info.token_bytes != 4) {
    return data_loss("{}: {} bytes a token, expected 2 or 4: the header is corrupt", name,
                     info.token_bytes);
  }
  if (info.vocab == 0 || (info.token_bytes == 2 && info.vocab > 65536)) {
    return data_loss("{}: a vocabulary of {} with {} bytes a token: the header is corrupt", name,
                     info.vocab, info.token_bytes);
  }
  if (reserved != 0) {
    return data_loss("{}: the reserved field is {}, expected 0: the header is corrupt", name,
                     reserved);
  }
  TESSERA_RETURN_IF_ERROR(check_size(info, file_bytes, name));
  return info;
}

StatusOr<ShardInfo> inspect_llm_c(std::string_view header, uint64_t file_bytes,
                                  const std::string& name) {
  if (header.size() < kLlmCHeaderBytes) {
    return data_loss("{}: {} bytes, less than the header of an llm.c shard ({}): it is truncated",
                     name, file_bytes, kLlmCHeaderBytes);
  }
  ByteReader reader(header.substr(sizeof(int32_t)));
  const int32_t version = reader.number<int32_t>();
  const int32_t tokens = reader.number<int32_t>();
  if (version != kLlmCVersion) {
    return invalid_argument("{}: llm.c shard version {}, only version {} (16-bit ids) is read",
                            name, version, kLlmCVersion);
  }
  ShardInfo info;
  info.format = ShardInfo::Format::kLlmC;
  info.token_bytes = kRawTokenBytes;
  info.data_offset = kLlmCHeaderBytes;
  if (tokens < 0) return data_loss("{}: {} tokens: the header is corrupt", name, tokens);
  info.tokens = static_cast<uint64_t>(tokens);
  TESSERA_RETURN_IF_ERROR(check_size(info, file_bytes, name));
  return info;
}

}  // namespace

std::string encode_shard_header(uint32_t token_bytes, uint32_t vocab, uint64_t tokens) {
  ByteWriter writer;
  writer.raw(kMagic.data(), kMagic.size());
  writer.number(kTokenShardVersion);
  writer.number(token_bytes);
  writer.number(vocab);
  writer.number(tokens);
  writer.number(uint64_t{0});
  return writer.take();
}

StatusOr<ShardInfo> inspect_shard(std::string_view header, uint64_t file_bytes,
                                  const std::string& name) {
  if (header.substr(0, kMagic.size()) == kMagic) return inspect_tessera(header, file_bytes, name);
  ByteReader reader(header);
  if (reader.number<int32_t>() == kLlmCMagic) return inspect_llm_c(header, file_bytes, name);
  if (!name.ends_with(".bin")) {
    return data_loss(
        "{}: starts with {}, neither a Tessera nor an llm.c token shard: it is corrupt or "
        "something else (raw 16-bit ids must be named .bin)",
        name, to_hex(header.substr(0, kMagic.size())));
  }
  if (file_bytes == 0 || file_bytes % kRawTokenBytes != 0) {
    return data_loss("{}: {} bytes are no whole number of 16-bit ids: it is truncated", name,
                     file_bytes);
  }
  ShardInfo info;
  info.format = ShardInfo::Format::kRaw;
  info.token_bytes = kRawTokenBytes;
  info.tokens = file_bytes / kRawTokenBytes;
  return info;
}

StatusOr<std::unique_ptr<TokenShardReader>> TokenShardReader::open(const std::string& path) {
  std::unique_ptr<TokenShardReader> shard(new TokenShardReader);
  shard->path_ = path;
  shard->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (shard->fd_ < 0) return file_error(path, "open");
  struct stat info {};
  if (::fstat(shard->fd_, &info) != 0) return file_error(path, "stat");
  if (!S_ISREG(info.st_mode)) return invalid_argument("{}: not a regular file", path);
  std::string header(kLlmCHeaderBytes, '\0');
  const ssize_t count = ::pread(shard->fd_, header.data(), header.size(), 0);
  if (count < 0) return file_error(path, "read");
  header.resize(static_cast<size_t>(count));
  TESSERA_ASSIGN_OR_RETURN(shard->info_,
                           inspect_shard(header, static_cast<uint64_t>(info.st_size), path));
  return shard;
}

TokenShardReader::~TokenShardReader() {
  if (fd_ >= 0) ::close(fd_);
}

StatusOr<std::vector<uint32_t>> TokenShardReader::read(uint64_t first, uint64_t count) const {
  if (first > info_.tokens || count > info_.tokens - first) {
    return error(absl::StatusCode::kOutOfRange, "{}: tokens {} to {} were asked for, it has {}",
                 path_, first, first + count, info_.tokens);
  }
  std::string bytes(count * info_.token_bytes, '\0');
  const uint64_t offset = info_.data_offset + first * info_.token_bytes;
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t got =
        ::pread(fd_, bytes.data() + have, bytes.size() - have, static_cast<off_t>(offset + have));
    if (got < 0) {
      if (errno == EINTR) continue;
      return file_error(path_, "read");
    }
    if (got == 0) {
      return data_loss(
          "{}: ends at byte {}: it was shortened while it was open; build or copy it again", path_,
          offset + have);
    }
    have += static_cast<size_t>(got);
  }
  std::vector<uint32_t> ids(count);
  ByteReader reader(bytes);
  for (uint32_t& id : ids) {
    id = info_.token_bytes == 2 ? reader.number<uint16_t>() : reader.number<uint32_t>();
    if (info_.vocab != 0 && id >= info_.vocab) {
      return data_loss(
          "{}: token {} is outside the vocabulary of {}: the file is corrupt; build or copy "
          "it again",
          path_, id, info_.vocab);
    }
  }
  return ids;
}

}  // namespace tessera::data
