// A miner that cheats: the miner's own program around an engine or a link that lies. Only built for tests; nothing in the
// product knows of it. TESSERA_CHEAT names how (tests/adversaries/cheating_engine.h, or invented-receipts,
// replayed-receipts, not-whole and wrong-epoch; noise-called-repaired does two things), TESSERA_CHEAT_SHARE in how much of its work, TESSERA_CHEAT_SEED in which.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "adversaries/cheating_engine.h"
#include "adversaries/lying_link.h"
#include "apps/miner_program.h"

namespace {

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tessera;
  const std::string name = setting("TESSERA_CHEAT", "none");
  test::CheatOptions options;
  options.share = std::stod(setting("TESSERA_CHEAT_SHARE", "1"));
  options.seed = std::stoull(setting("TESSERA_CHEAT_SEED", "1"));
  apps::MinerHooks hooks;
  const std::map<std::string, test::Lie> lies = {{"invented-receipts", test::Lie::kInventedReceipts},
                                                 {"replayed-receipts", test::Lie::kReplayedReceipts},
                                                 {"not-whole", test::Lie::kNotWhole},
                                                 {"wrong-epoch", test::Lie::kWrongEpoch},
                                                 {"noise-called-repaired", test::Lie::kCalledRepaired}};
  const auto known = lies.find(name);
  if (known != lies.end()) {
    const test::Lie lie = known->second;
    hooks.orchestrator = [=](ports::OrchestratorLink& link, const KeyPair& key) {
      return std::make_unique<test::LyingLink>(link, key, lie, options.share, options.seed);
    };
  }
  const auto cheat = name == "noise-called-repaired" ? std::optional(test::Cheat::kNoise) : test::cheat_named(name);
  if (cheat) {
    options.cheat = *cheat;
    hooks.engine = [options](std::unique_ptr<ports::StageEngine> engine, const core::RunSpec& spec) {
      return test::cheating(std::move(engine), spec, options);
    };
  } else if (known == lies.end()) {
    std::fprintf(stderr, "TESSERA_CHEAT: nobody cheats like '%s'\n", name.c_str());
    return 2;
  }
  return apps::run_miner(argc, argv, hooks);
}
