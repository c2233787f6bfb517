// The files a dataset is built from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::data {

struct InputFile {
  std::string path;
  uint64_t bytes = 0;
  int64_t modified_ns = 0;
  bool gzip = false;
  bool json_lines = false;
};

// Files as they are given, folders as the regular files below them in the order of their paths'
// bytes. In a folder, names that begin with a dot and symbolic links are left out. A file that
// comes up twice is refused: one copy could end up in the training split and the other in the
// validation split.
StatusOr<std::vector<InputFile>> list_input_files(const std::vector<std::string>& inputs);

}  // namespace tessera::data
