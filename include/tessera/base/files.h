// Whole files: read, and write atomically (temporary file, fsync, rename, fsync of the folder).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera {

// Errors name the path and the system's reason. `limit_bytes` guards against reading something absurd.
StatusOr<std::string> read_file(const std::string& path, size_t limit_bytes = size_t{1} << 40);
// After a crash at any instant the path holds the old or the new content, never a part.
Status write_file_atomic(const std::string& path, std::string_view content, unsigned mode = 0644);
// The same for content in pieces, one after another: nothing is copied to join them.
Status write_pieces_atomic(const std::string& path, const std::vector<std::string_view>& pieces,
                           unsigned mode = 0644);
// As write_file_atomic(), for what is written often and may be lost with the machine's power, but not with the process:
// nothing waits for the disk.
Status write_file_quickly(const std::string& path, std::string_view content, unsigned mode = 0644);
Status make_directories(const std::string& path);
bool file_exists(const std::string& path);

}  // namespace tessera
