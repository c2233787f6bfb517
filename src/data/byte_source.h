// The bytes of an input file, decompressed if it is a .gz. One thread an object.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tessera/base/status.h"

namespace tessera::data {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills `buffer` as far as the content goes; less than `size` only at its end.
  virtual StatusOr<size_t> read(char* buffer, size_t size) = 0;
  // Of the file as it is stored, for a progress display.
  virtual uint64_t stored_bytes_read() const = 0;
};

StatusOr<std::unique_ptr<ByteSource>> open_byte_source(const std::string& path, bool gzip);

}  // namespace tessera::data
