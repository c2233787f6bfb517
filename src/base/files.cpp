#include "tessera/base/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace tessera {
namespace {

Status system_error(const std::string& path, const char* action) {
  const int code = errno;
  const auto status_code =
      code == ENOENT ? absl::StatusCode::kNotFound
      : code == EACCES || code == EPERM ? absl::StatusCode::kPermissionDenied
      : code == ENOSPC ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal;
  return error(status_code, "{}: can't {}: {}", path, action, std::strerror(code));
}

// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Status write_all(int fd, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    const ssize_t written = ::write(fd, content.data(), content.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return system_error(path, "write");
    }
    content.remove_prefix(static_cast<size_t>(written));
  }
  return ok_status();
}

}  // namespace

StatusOr<std::string> read_file(const std::string& path, size_t limit_bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return system_error(path, "open");
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return system_error(path, "stat");
  if (!S_ISREG(info.st_mode)) return invalid_argument("{}: not a regular file", path);
  if (static_cast<size_t>(info.st_size) > limit_bytes) {
    return invalid_argument("{}: {} bytes, more than the {} allowed here", path, info.st_size, limit_bytes);
  }
  std::string content(static_cast<size_t>(info.st_size), '\0');
  size_t have = 0;
  while (have < content.size()) {
    const ssize_t count = ::read(file.get(), content.data() + have, content.size() - have);
    if (count < 0) {
      if (errno == EINTR) continue;
      return system_error(path, "read");
    }
    if (count == 0) break;
    have += static_cast<size_t>(count);
  }
  content.resize(have);
  return content;
}

Status write_file_atomic(const std::string& path, std::string_view content, unsigned mode) {
  return write_pieces_atomic(path, {content}, mode);
}

Status write_pieces_atomic(const std::string& path, const std::vector<std::string_view>& pieces,
                           unsigned mode) {
  const std::filesystem::path target(path);
  const std::string folder = target.has_parent_path() ? target.parent_path().string() : ".";
  TESSERA_RETURN_IF_ERROR(make_directories(folder));
  std::string temporary = path + ".tmp-XXXXXX";
  {
    const Descriptor file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (file.get() < 0) return system_error(temporary, "create");
    Status status = ok_status();
    for (size_t i = 0; i < pieces.size() && status.ok(); ++i) {
      status = write_all(file.get(), pieces[i], temporary);
    }
    if (status.ok() && ::fchmod(file.get(), mode) != 0) status = system_error(temporary, "chmod");
    if (status.ok() && ::fsync(file.get()) != 0) status = system_error(temporary, "fsync");
    if (!status.ok()) {
      ::unlink(temporary.c_str());
      return status;
    }
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const Status status = system_error(path, "rename to");
    ::unlink(temporary.c_str());
    return status;
  }
  const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
  return ok_status();
}

Status write_file_quickly(const std::string& path, std::string_view content, unsigned mode) {
  const std::string temporary = path + ".new";
  {
    const Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
    if (file.get() < 0) return system_error(temporary, "create");
    TESSERA_RETURN_IF_ERROR(write_all(file.get(), content, temporary));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return system_error(path, "rename to");
  return ok_status();
}

Status make_directories(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) return internal_error("{}: can't make this folder: {}", path, code.message());
  return ok_status();
}

bool file_exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

}  // namespace tessera
