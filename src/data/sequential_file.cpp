#include "data/sequential_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tessera/base/crypto.h"

namespace tessera::data {
namespace {

constexpr size_t kBufferBytes = 1u << 20;

Status write_all(const std::string& path, int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return file_error(path, "write");
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return ok_status();
}

}  // namespace

Status file_error(const std::string& path, std::string_view action) {
  const int code = errno;
  const auto status_code = code == ENOENT                     ? absl::StatusCode::kNotFound
                           : code == EACCES || code == EPERM  ? absl::StatusCode::kPermissionDenied
                           : code == ENOSPC || code == EDQUOT ? absl::StatusCode::kResourceExhausted
                                                              : absl::StatusCode::kInternal;
  return error(status_code, "{}: can't {}: {}", path, action, std::strerror(code));
}

StatusOr<std::unique_ptr<SequentialReader>> SequentialReader::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe that nobody writes must not wait. It means nothing to a regular
  // file.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return file_error(path, "open");
  std::unique_ptr<SequentialReader> reader(new SequentialReader(path, fd));
  struct stat info {};
  if (::fstat(fd, &info) != 0) return file_error(path, "stat");
  if (!S_ISREG(info.st_mode)) return invalid_argument("{}: not a regular file", path);
  return reader;
}

SequentialReader::~SequentialReader() { ::close(fd_); }

StatusOr<size_t> SequentialReader::read(char* buffer, size_t size) {
  size_t have = 0;
  while (have < size) {
    const ssize_t count = ::read(fd_, buffer + have, size - have);
    if (count < 0) {
      if (errno == EINTR) continue;
      return file_error(path_, "read");
    }
    if (count == 0) break;
    have += static_cast<size_t>(count);
  }
  bytes_read_ += have;
  return have;
}

StatusOr<std::unique_ptr<SequentialWriter>> SequentialWriter::create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return file_error(path, "create");
  return std::unique_ptr<SequentialWriter>(new SequentialWriter(path, fd));
}

SequentialWriter::~SequentialWriter() {
  if (fd_ >= 0) ::close(fd_);
}

Status SequentialWriter::append(std::string_view bytes) {
  TESSERA_CHECK(fd_ >= 0);
  buffer_.append(bytes);
  return buffer_.size() >= kBufferBytes ? flush() : ok_status();
}

Status SequentialWriter::flush() {
  TESSERA_RETURN_IF_ERROR(write_all(path_, fd_, buffer_));
  buffer_.clear();
  return ok_status();
}

Status SequentialWriter::overwrite(uint64_t offset, std::string_view bytes) {
  TESSERA_RETURN_IF_ERROR(flush());
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      return file_error(path_, "write");
    }
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return ok_status();
}

Status SequentialWriter::finish() {
  TESSERA_RETURN_IF_ERROR(flush());
  if (::fsync(fd_) != 0) return file_error(path_, "fsync");
  const int fd = fd_;
  fd_ = -1;
  return ::close(fd) == 0 ? ok_status() : file_error(path_, "close");
}

StatusOr<Digest> digest_file(
    const std::string& path,
    const std::function<Status(uint64_t offset, std::string_view piece)>& visit) {
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<SequentialReader> reader,
                           SequentialReader::open(path));
  std::string buffer(kBufferBytes, '\0');
  Hasher hasher;
  while (true) {
    const uint64_t offset = reader->bytes_read();
    TESSERA_ASSIGN_OR_RETURN(const size_t count, reader->read(buffer.data(), buffer.size()));
    if (count == 0) return hasher.finish();
    const std::string_view piece(buffer.data(), count);
    hasher.update(piece);
    if (visit) TESSERA_RETURN_IF_ERROR(visit(offset, piece));
  }
}

Status sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return file_error(folder, "open");
  const Status status = ::fsync(fd) == 0 ? ok_status() : file_error(folder, "fsync");
  ::close(fd);
  return status;
}

}  // namespace tessera::data
