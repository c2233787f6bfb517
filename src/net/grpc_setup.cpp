#include "tessera/net/grpc_setup.h"

#include <absl/synchronization/mutex.h>
#include <grpc/support/log.h>

#include "tessera/base/log.h"

namespace tessera::net {

void prepare_grpc() {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Before gRPC has started its own default is not set yet, and then it drops every line.
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function([](gpr_log_func_args* line) {
    spdlog::debug("grpc: {}:{}: {}", line->file, line->line, line->message);
  });
}

}  // namespace tessera::net
