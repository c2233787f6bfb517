// Every file in configs/ loads, and the commands in sweep.yaml's comments do what they say.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "config/config_files.h"
#include "tessera/config/daemon_config.h"
#include "tessera/config/run_config.h"

namespace tessera::config {
namespace {

std::vector<std::string> shipped_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(TESSERA_CONFIGS)) {
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(ShippedConfigFiles, Load) {
  for (const std::string& path : shipped_files()) {
    SCOPED_TRACE(path);
    if (path.ends_with("-orchestrator.yaml")) {
      EXPECT_EQ(message_of_result(load_orchestrator_config(path, {})), "accepted");
    } else if (path.ends_with("-miner.yaml")) {
      EXPECT_EQ(message_of_result(load_miner_config(path, {})), "accepted");
    } else {
      const auto config = load_run_config(path, {});
      ASSERT_EQ(message_of_result(config), "accepted");
      EXPECT_FALSE(config->data.text.empty());
    }
  }
}

TEST(ShippedConfigFiles, AreAllHere) {
  const std::vector<std::string> files = shipped_files();
  for (const char* name : {"quickstart.yaml", "one-gpu.yaml", "two-boxes.yaml", "sweep.yaml",
                           "two-boxes-orchestrator.yaml", "two-boxes-miner.yaml"}) {
    EXPECT_EQ(std::count(files.begin(), files.end(), std::string(TESSERA_CONFIGS) + "/" + name), 1)
        << name;
  }
}

TEST(ShippedConfigFiles, QuickstartIsWhatTheDocumentsSay) {
  const auto config = load_run_config(std::string(TESSERA_CONFIGS) + "/quickstart.yaml", {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.boundary.rank, 4u);
  EXPECT_EQ(config->spec.pipeline.stage_layers, (std::vector<uint32_t>{2, 2, 2}));
  EXPECT_EQ(config->spec.tokens_per_microbatch(), 1024u);
}

// The values after each --set of a comment line; empty if it has none.
std::vector<std::string> overrides_of(const std::string& line) {
  std::istringstream words(line);
  std::vector<std::string> overrides;
  for (std::string word; words >> word;) {
    if (word == "--set" && words >> word) overrides.push_back(word);
  }
  return overrides;
}

TEST(ShippedConfigFiles, CommandsInTheirCommentsWork) {
  int commands = 0;
  for (const std::string& path : shipped_files()) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      const std::vector<std::string> overrides = overrides_of(line);
      if (overrides.empty()) continue;
      ++commands;
      const std::string result = path.ends_with("-miner.yaml")
                                     ? message_of_result(load_miner_config(path, overrides))
                                     : message_of_result(load_run_config(path, overrides));
      EXPECT_EQ(result, "accepted") << path << ": " << line;
    }
  }
  EXPECT_GE(commands, 10);
}

TEST(ShippedConfigFiles, TheSweepGivesTheRatiosItNames) {
  const std::string path = std::string(TESSERA_CONFIGS) + "/sweep.yaml";
  for (const auto& [override_text, rank] :
       std::vector<std::pair<std::string, uint32_t>>{{"1x", 256}, {"32x", 28}, {"128x", 4}}) {
    const auto config = load_run_config(path, {"boundary.compression=" + override_text});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->spec.boundary.rank, rank);
  }
}

}  // namespace
}  // namespace tessera::config
