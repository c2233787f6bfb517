#include "store/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace tessera::store {
namespace {

// For people only: the number a holder left in its lock file. The lock is the flock, not the
// number.
std::string holder_of(int fd) {
  char text[32];
  const ssize_t size = ::pread(fd, text, sizeof(text), 0);
  long process = 0;
  if (size <= 0 || std::from_chars(text, text + size, process).ec != std::errc())
    return "another process";
  return fmt::format("process {}", process);
}

}  // namespace

StatusOr<std::unique_ptr<FileLock>> FileLock::acquire(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return failed_precondition(
        "{}: can't make this lock file: {}; check the folder and its permissions", path,
        std::strerror(errno));
  }
  std::unique_ptr<FileLock> lock(new FileLock(fd));
  int result = 0;
  do {
    result = ::flock(fd, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EWOULDBLOCK) {
    return failed_precondition("{}: held by {}", path, holder_of(fd));
  }
  if (result != 0) {
    return failed_precondition("{}: can't lock: {}; the file system must support flock", path,
                               std::strerror(errno));
  }
  const std::string text = fmt::format("{}\n", ::getpid());
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, text.data(), text.size(), 0) < 0) {
    return error(absl::StatusCode::kResourceExhausted, "{}: can't write: {}", path,
                 std::strerror(errno));
  }
  return lock;
}

FileLock::~FileLock() { ::close(fd_); }

}  // namespace tessera::store
