// An exclusive lock between processes (flock on a file made for it). It is held until destruction
// or the end of the process, however that comes, so that a crash never leaves a lock behind. The
// empty file stays: removing it would let two processes lock two different files of one name.
#pragma once

#include <memory>
#include <string>

#include "tessera/base/status.h"

namespace tessera::store {

class FileLock {
 public:
  // FAILED_PRECONDITION, naming the holder's process, when it is taken; never waits.
  static StatusOr<std::unique_ptr<FileLock>> acquire(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace tessera::store
