// A validator: reports to the orchestrator, takes audits one at a time, brings their results. Two threads: run()'s caller
// reports, another one works.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"
#include "tessera/node/auditor.h"
#include "tessera/ports/links.h"
#include "tessera/ports/token_source.h"

namespace tessera::node {

struct ValidatorOptions {
  AuditorOptions auditor;
  uint64_t incarnation = 0;   // random, new for every process
  uint64_t memory_bytes = 0;
  std::string software;
  std::function<void(const std::string& run_id)> joined;  // may be empty
};

struct ValidatorLinks {
  ports::ValidatorLink* orchestrator = nullptr;
  ports::BlobLink* blobs = nullptr;
  ports::TokenSource* tokens = nullptr;
};

class ValidatorNode {
 public:
  ValidatorNode(ValidatorOptions options, ValidatorLinks links);
  ~ValidatorNode();

  // Until `stop` becomes true or the run is over; says why. An audit in hand is left to another validator.
  // PERMISSION_DENIED: the orchestrator does not know this key as a validator's.
  StatusOr<std::string> run(const std::atomic<bool>& stop);

 private:
  class Shell;
  std::unique_ptr<Shell> shell_;
};

}  // namespace tessera::node
