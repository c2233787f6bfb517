// Child processes: started with their output in a file, never left behind.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

struct ProcessOptions {
  std::vector<std::string> command;  // path and arguments
  std::string output;                // file that gets stdout and stderr; empty: inherited
};

// Starts a child in a process group of its own that gets SIGTERM when this process dies.
StatusOr<pid_t> start_process(const ProcessOptions& options);
// The exit code (128 + signal for a killed one) once it has ended, without waiting.
std::optional<int> poll_process(pid_t pid);
// Runs to its end and returns what it wrote to stdout; an error if it fails, with the end of its stderr file.
StatusOr<std::string> run_process(const std::vector<std::string>& command);

}  // namespace tessera::apps
