// The program of a miner, flags and all. Its parts can be wrapped: the miners that cheat in the tests of audits are this program
// with another engine or another word to the orchestrator.
#pragma once

#include <functional>
#include <memory>

#include "tessera/base/crypto.h"
#include "tessera/ports/links.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::apps {

struct MinerHooks {
  // Both may be empty.
  std::function<std::unique_ptr<ports::StageEngine>(std::unique_ptr<ports::StageEngine>, const core::RunSpec&)> engine;
  std::function<std::unique_ptr<ports::OrchestratorLink>(ports::OrchestratorLink&, const KeyPair&)> orchestrator;
};

// The exit code.
int run_miner(int argc, char** argv, const MinerHooks& hooks);

}  // namespace tessera::apps
