// What an orchestrator tells about itself, as JSON.
#pragma once

#include <map>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"
#include "tessera/node/silence_watch.h"

namespace tessera::node {

struct ViewSources {
  const core::Orchestrator& core;
  const std::map<MinerIndex, core::MinerStatus>& statuses;  // of miners that reported to this process
  const SilenceWatch& heard;
  TimeMs now = 0;                                           // of `heard`
  double loss = 0;                                          // the tail's recent one
};

// Topics: status, miners, merges (argument: empty, or one merge).
StatusOr<std::string> view(const ViewSources& sources, const std::string& topic, const std::string& argument);

}  // namespace tessera::node
