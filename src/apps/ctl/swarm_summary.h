// What a finished run amounts to, read from its ledger and from the files its nodes left: nothing here trusts a counter
// that a node could have kept wrong.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

struct SummaryInputs {
  std::string out;                             // the swarm's folder
  std::vector<std::string> miner_directories;
  size_t miners_ended_well = 0;                // with exit code 0
  double seconds = 0;
};

// Fields: docs/formats/summary.md. `val_loss` is null; who evaluates fills it in.
StatusOr<nlohmann::json> summarise(const SummaryInputs& inputs);

}  // namespace tessera::apps
