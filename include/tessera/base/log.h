// Logging: spdlog to a rotating file (bounded on disk) and, if asked for, to stderr.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace tessera {

struct LogOptions {
  std::string name;       // of the program, in every line
  std::string file;       // empty: no file
  std::string level = "info";  // trace, debug, info, warn, error
  bool to_stderr = true;
  size_t file_bytes = 8u << 20;  // of one file; 3 files are kept
};

// Sets spdlog's default logger. Falls back to stderr, with a warning, when the file can't be opened.
void start_logging(const LogOptions& options);

}  // namespace tessera
