// What the daemons' main functions share.
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

// Exit codes of every program.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRestart = 75;  // a restart may mend it (EX_TEMPFAIL)

// The first SIGINT or SIGTERM sets stop, the second abandon.
struct StopFlags {
  std::atomic<bool> stop{false};
  std::atomic<bool> abandon{false};
};
StopFlags& catch_signals();

// The software's version, for people.
std::string version();

// The file that the ledger is sealed with: beside the orchestrator's own key.
std::string ledger_key_file(const std::string& orchestrator_key_file);

// Overrides of a run's keys ("training.steps=3") and those of the daemon's own, told apart by their first word.
struct SplitOverrides {
  std::vector<std::string> run;
  std::vector<std::string> daemon;
};
SplitOverrides split_overrides(const std::vector<std::string>& overrides);

// Prints "name: error: text" to stderr and returns kExitFailure.
int fail(std::string_view program, const Status& status);

}  // namespace tessera::apps
