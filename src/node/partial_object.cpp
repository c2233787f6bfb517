#include "partial_object.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "tessera/base/crypto.h"
#include "tessera/base/log.h"

namespace tessera::node {
namespace {

constexpr const char* kEnding = ".part";

// Less than asked for: the file ends there, or can't be read.
size_t read_at(int file, uint64_t at, char* into, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t count = ::pread(file, into + done, bytes - done, static_cast<off_t>(at + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

bool write_at(int file, uint64_t at, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    at += static_cast<uint64_t>(count);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

}  // namespace

std::string PartialObject::path(const std::string& object) const { return folder_ + "/" + object + kEnding; }

std::vector<uint64_t> PartialObject::open(const core::ObjectManifest& manifest, std::string* content) {
  close();
  if (folder_.empty()) return {};
  path_ = path(manifest.digest().hex());
  std::error_code failed;
  std::vector<std::filesystem::path> others;
  for (std::filesystem::directory_iterator entry(folder_, failed), end; !failed && entry != end; entry.increment(failed)) {
    if (entry->path().extension() == kEnding && entry->path() != path_) others.push_back(entry->path());
  }
  for (const std::filesystem::path& other : others) std::filesystem::remove(other, failed);
  file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) {
    spdlog::warn("{}: {}; if this process ends before the state is whole, the next one fetches all of it", path_, std::strerror(errno));
    return {};
  }
  std::vector<uint64_t> chunks;
  for (uint64_t i = 0; i < manifest.chunks.size(); ++i) {
    const uint64_t at = i * manifest.chunk_bytes;
    const size_t bytes = std::min<uint64_t>(manifest.chunk_bytes, manifest.total_bytes - at);
    if (read_at(file_, at, content->data() + at, bytes) != bytes) continue;
    if (digest_of(std::string_view(*content).substr(at, bytes)) == manifest.chunks[i]) chunks.push_back(i);
  }
  if (!chunks.empty()) spdlog::info("{} of {} chunks of the stage's state are here from before", chunks.size(), manifest.chunks.size());
  return chunks;
}

void PartialObject::write(uint64_t at, std::string_view bytes) {
  // What is not written is fetched again; a chunk that was written in part has another digest.
  if (file_ >= 0 && !write_at(file_, at, bytes)) spdlog::debug("{}: {}", path_, std::strerror(errno));
}

void PartialObject::finish() {
  if (file_ >= 0) ::unlink(path_.c_str());
  close();
}

void PartialObject::close() {
  if (file_ >= 0) ::close(file_);
  file_ = -1;
}

}  // namespace tessera::node
