// Large files read and written from front to back, with bounded memory. One thread an object.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::data {

// "<path>: can't <action>: <the system's reason>", from errno.
Status file_error(const std::string& path, std::string_view action);

class SequentialReader {
 public:
  // Regular files only: a pipe or a device could block or never end.
  static StatusOr<std::unique_ptr<SequentialReader>> open(const std::string& path);
  ~SequentialReader();
  SequentialReader(const SequentialReader&) = delete;
  SequentialReader& operator=(const SequentialReader&) = delete;
  // Fills `buffer` as far as the file goes; less than `size` only at its end.
  StatusOr<size_t> read(char* buffer, size_t size);
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  SequentialReader(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
  uint64_t bytes_read_ = 0;
};

// A new file; what is not finished may be lost in a crash.
class SequentialWriter {
 public:
  static StatusOr<std::unique_ptr<SequentialWriter>> create(const std::string& path);
  ~SequentialWriter();
  SequentialWriter(const SequentialWriter&) = delete;
  SequentialWriter& operator=(const SequentialWriter&) = delete;
  Status append(std::string_view bytes);
  // Writes over bytes that were appended before.
  Status overwrite(uint64_t offset, std::string_view bytes);
  // Everything to the file system, so that it can be read; not to the disk.
  Status flush();
  // Everything to the disk. Nothing may follow.
  Status finish();

 private:
  SequentialWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
  std::string buffer_;
};

// BLAKE2b-256 of a file, read in pieces; `visit` (may be empty) sees each piece and where it
// begins.
StatusOr<Digest> digest_file(
    const std::string& path,
    const std::function<Status(uint64_t offset, std::string_view piece)>& visit = {});

// Makes the names in a folder survive a crash.
Status sync_folder(const std::string& folder);

}  // namespace tessera::data
