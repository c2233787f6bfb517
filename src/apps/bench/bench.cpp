#include "apps/bench/bench.h"

#include <cstdio>
#include <utility>

#include "tessera/base/files.h"

namespace tessera::apps {

Status write_report(const std::string& path, const nlohmann::json& result) {
  if (path.empty()) return ok_status();
  return write_file_atomic(path, result.dump(2) + "\n");
}

void on_call(CLI::App* command, std::function<Status()> work) {
  command->callback([work = std::move(work)] {
    const Status status = work();
    if (status.ok()) return;
    std::fprintf(stderr, "tessera-bench: %s\n", message_of(status).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace tessera::apps
