#include "tessera/store/blobs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>

#include "tessera/base/crypto.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

constexpr std::string_view kTemporaryPrefix = "tmp-";  // never the start of a blob's name

Status system_error(const std::string& path, const char* action) {
  const int code = errno;
  const auto status_code = code == ENOSPC || code == EDQUOT ? absl::StatusCode::kResourceExhausted
                                                            : absl::StatusCode::kInternal;
  return error(status_code, "{}: can't {}: {}", path, action, std::strerror(code));
}

// The digest that `folder_name`/`file_name` stands for; nothing for a file that is not a blob.
std::optional<Digest> digest_of_name(const std::string& folder_name, const std::string& file_name) {
  const std::string text = folder_name + file_name;
  const std::optional<std::string> raw = from_hex(text);
  Digest digest;
  if (folder_name.size() != 2 || !raw || !Digest::from(*raw, &digest) || digest.hex() != text) {
    return std::nullopt;
  }
  return digest;
}

std::string subfolder(const std::string& folder, unsigned index) {
  const char byte = static_cast<char>(index);
  return folder + "/" + to_hex({&byte, 1});
}

// Marks a file as used now; false if there is none.
bool touch(const std::string& path) { return ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0) == 0; }

// Writes a whole new file and closes it; on failure nothing is left.
Status write_temporary(std::string* path_template, std::string_view content) {
  const int fd = ::mkostemp(path_template->data(), O_CLOEXEC);
  if (fd < 0) return system_error(*path_template, "create");
  Status status = ok_status();
  while (!content.empty() && status.ok()) {
    const ssize_t written = ::write(fd, content.data(), content.size());
    if (written >= 0) {
      content.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      status = system_error(*path_template, "write");
    }
  }
  if (status.ok() && ::fchmod(fd, 0644) != 0) status = system_error(*path_template, "chmod");
  // Without fsync, close() is where a network file system reports a failed write.
  if (::close(fd) != 0 && status.ok()) status = system_error(*path_template, "close");
  if (!status.ok()) ::unlink(path_template->c_str());
  return status;
}

}  // namespace

StatusOr<std::unique_ptr<BlobStore>> BlobStore::open(const std::string& folder,
                                                     uint64_t limit_bytes) {
  std::unique_ptr<BlobStore> store(new BlobStore(folder, limit_bytes));
  for (unsigned index = 0; index < 256; ++index) {
    TESSERA_RETURN_IF_ERROR(make_directories(subfolder(folder, index)));
  }
  TESSERA_RETURN_IF_ERROR(store->count_existing());
  return store;
}

Status BlobStore::count_existing() {
  uint64_t total = 0;
  for (unsigned index = 0; index < 256; ++index) {
    const std::filesystem::path folder = subfolder(folder_, index);
    std::error_code code;
    for (std::filesystem::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
      const std::string name = entry->path().filename().string();
      if (name.starts_with(kTemporaryPrefix)) {
        ::unlink(entry->path().c_str());
        continue;
      }
      struct stat info {};
      if (digest_of_name(folder.filename().string(), name) &&
          ::stat(entry->path().c_str(), &info) == 0) {
        total += static_cast<uint64_t>(info.st_size);
      }
    }
    if (code)
      return internal_error("{}: can't list this folder: {}", folder.string(), code.message());
  }
  bytes_ = total;
  return ok_status();
}

std::string BlobStore::path_of(const Digest& digest) const {
  const std::string hex = digest.hex();
  return folder_ + "/" + hex.substr(0, 2) + "/" + hex.substr(2);
}

Status BlobStore::reserve(uint64_t bytes) {
  uint64_t have = bytes_.load();
  do {
    if (bytes > limit_bytes_ || have > limit_bytes_ - bytes) {
      return error(absl::StatusCode::kResourceExhausted,
                   "{}: holds {} of at most {} bytes, no room for {} more; raise the limit of the "
                   "blob folder or "
                   "remove old blobs",
                   folder_, have, limit_bytes_, bytes);
    }
  } while (!bytes_.compare_exchange_weak(have, have + bytes));
  return ok_status();
}

StatusOr<Digest> BlobStore::put(std::string_view content, bool* is_new) {
  const Digest digest = digest_of(content);
  TESSERA_RETURN_IF_ERROR(put(digest, content, is_new));
  return digest;
}

Status BlobStore::put(const Digest& digest, std::string_view content, bool* is_new) {
  if (is_new != nullptr) *is_new = false;
  if (content.size() > kMaxBlobBytes) {
    return invalid_argument("a blob of {} bytes; the limit is {}: cut it into chunks",
                            content.size(), kMaxBlobBytes);
  }
  const std::string path = path_of(digest);
  std::lock_guard lock(lock_of(digest));
  const StatusOr<std::string> existing = read_file(path, kMaxBlobBytes);
  if (existing.ok() && *existing == content) {
    touch(path);
    return ok_status();
  }
  if (!absl::IsNotFound(existing.status())) TESSERA_RETURN_IF_ERROR(remove_locked(path));
  TESSERA_RETURN_IF_ERROR(reserve(content.size()));
  const Status status = write(digest, content);
  if (!status.ok()) {
    bytes_ -= content.size();
    return status;
  }
  if (is_new != nullptr) *is_new = true;
  return ok_status();
}

Status BlobStore::write(const Digest& digest, std::string_view content) {
  const std::string path = path_of(digest);
  std::string temporary =
      subfolder(folder_, digest.bytes[0]) + "/" + std::string(kTemporaryPrefix) + "XXXXXX";
  TESSERA_RETURN_IF_ERROR(write_temporary(&temporary, content));
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const Status status = system_error(path, "rename to");
    ::unlink(temporary.c_str());
    return status;
  }
  return ok_status();
}

StatusOr<std::string> BlobStore::get(const Digest& digest) const {
  const std::string path = path_of(digest);
  StatusOr<std::string> content = read_file(path, kMaxBlobBytes);
  if (absl::IsNotFound(content.status()))
    return not_found("no blob {} in {}", digest.hex(), folder_);
  if (content.ok() && digest_of(*content) == digest) return content;

  // Look again under the lock: a put may have replaced the damaged file meanwhile.
  std::lock_guard lock(lock_of(digest));
  content = read_file(path, kMaxBlobBytes);
  if (content.ok() && digest_of(*content) == digest) return content;
  // A file longer than any blob is damage too; an I/O error says nothing about the content, so the
  // file stays.
  const bool damaged = content.ok() || absl::IsInvalidArgument(content.status());
  if (!damaged) return content.status();
  TESSERA_RETURN_IF_ERROR(remove_locked(path));
  return data_loss(
      "{}: the content does not have the hash of its name; removed, put it again from another copy",
      path);
}

bool BlobStore::has(const Digest& digest) const {
  std::lock_guard lock(lock_of(digest));
  return touch(path_of(digest));
}

StatusOr<uint64_t> BlobStore::sweep(const std::set<Digest>& keep, std::chrono::seconds min_age, Recent recent) {
  struct Unneeded {
    Digest digest;
    std::time_t used = 0;
    uint64_t bytes = 0;
  };
  const auto limit = std::chrono::system_clock::now() - min_age;
  const std::time_t oldest_kept = std::chrono::system_clock::to_time_t(limit);
  std::vector<Unneeded> unneeded;
  for (const Digest& digest : list()) {
    struct stat info {};
    if (keep.count(digest) > 0 || ::stat(path_of(digest).c_str(), &info) != 0) continue;
    unneeded.push_back({digest, info.st_mtime, static_cast<uint64_t>(info.st_size)});
  }
  std::stable_sort(unneeded.begin(), unneeded.end(), [](const Unneeded& a, const Unneeded& b) { return a.used > b.used; });
  uint64_t removed = 0, kept = 0;
  for (const Unneeded& blob : unneeded) {
    const bool is_recent = int64_t{blob.used} * 1000 >= recent.since_unix_ms && kept + blob.bytes <= recent.bytes;
    if (is_recent) kept += blob.bytes;
    if (is_recent || blob.used >= oldest_kept) continue;
    const std::string path = path_of(blob.digest);
    std::lock_guard lock(lock_of(blob.digest));
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || info.st_mtime >= oldest_kept) continue;  // used meanwhile
    TESSERA_RETURN_IF_ERROR(remove_locked(path));
    removed += static_cast<uint64_t>(info.st_size);
  }
  return removed;
}

Status BlobStore::remove(const Digest& digest) {
  std::lock_guard lock(lock_of(digest));
  return remove_locked(path_of(digest));
}

Status BlobStore::remove_locked(const std::string& path) const {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? ok_status() : system_error(path, "stat");
  }
  if (::unlink(path.c_str()) != 0) {
    return errno == ENOENT ? ok_status() : system_error(path, "remove");
  }
  bytes_ -= static_cast<uint64_t>(info.st_size);
  return ok_status();
}

std::vector<Digest> BlobStore::list() const {
  std::vector<Digest> digests;
  for (unsigned index = 0; index < 256; ++index) {
    const std::filesystem::path folder = subfolder(folder_, index);
    std::error_code code;
    for (std::filesystem::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
      const std::optional<Digest> digest =
          digest_of_name(folder.filename().string(), entry->path().filename().string());
      if (digest) digests.push_back(*digest);
    }
  }
  std::sort(digests.begin(), digests.end());
  return digests;
}

}  // namespace tessera::store
