// A YAML file for one test case.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tessera/base/status.h"

namespace tessera::config {

// Writes `content` to c.yaml in a folder of the running test's own and enters that folder, so that
// messages say "c.yaml".
inline std::string write_config(const std::string& content) {
  const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
  std::string name = std::string("config-") + test->test_suite_name() + "-" + test->name();
  for (char& c : name) c = c == '/' ? '-' : c;
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / name;
  std::filesystem::create_directories(folder);
  std::filesystem::current_path(folder);
  std::ofstream file("c.yaml", std::ios::binary);
  file << content;
  EXPECT_TRUE(file.flush().good());
  return "c.yaml";
}

template <class T>
std::string message_of_result(const StatusOr<T>& result) {
  return result.ok() ? "accepted" : message_of(result.status());
}

}  // namespace tessera::config
