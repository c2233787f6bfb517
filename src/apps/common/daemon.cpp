#include "daemon.h"

#include <array>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>

namespace tessera::apps {
namespace {

StopFlags flags;

void on_signal(int) {
  // Lock-free atomics only.
  if (flags.stop.exchange(true)) flags.abandon.store(true);
}

}  // namespace

StopFlags& catch_signals() {
  static_assert(std::atomic<bool>::is_always_lock_free);
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return flags;
}

std::string version() { return TESSERA_VERSION; }

std::string ledger_key_file(const std::string& orchestrator_key_file) {
  return (std::filesystem::path(orchestrator_key_file).parent_path() / "ledger.key").string();
}

SplitOverrides split_overrides(const std::vector<std::string>& overrides) {
  static constexpr std::array<std::string_view, 9> kRunSections = {
      "run", "model", "pipeline", "training", "boundary", "merge", "timeouts", "checkpoint", "data"};
  SplitOverrides split;
  for (const std::string& text : overrides) {
    const std::string_view section = std::string_view(text).substr(0, text.find_first_of(".="));
    const bool of_run = std::find(kRunSections.begin(), kRunSections.end(), section) != kRunSections.end();
    (of_run ? split.run : split.daemon).push_back(text);
  }
  return split;
}

int fail(std::string_view program, const Status& status) {
  std::fprintf(stderr, "%.*s: error: %s\n", static_cast<int>(program.size()), program.data(),
               message_of(status).c_str());
  return kExitFailure;
}

}  // namespace tessera::apps
