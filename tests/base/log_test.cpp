#include "tessera/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/temporary_folder.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;
using testing::Not;

// Ends the file's sink before its folder goes.
class LogTest : public testing::Test {
 protected:
  ~LogTest() override { start_logging({.name = "test", .file = "", .level = "warn"}); }
  std::string logged() const {
    spdlog::default_logger()->flush();
    return *read_file(folder_ / "test.log");
  }
  TemporaryFolder folder_;
};

TEST_F(LogTest, WritesFromItsLevelOn) {
  start_logging(
      {.name = "miner", .file = folder_ / "test.log", .level = "warn", .to_stderr = false});
  spdlog::info("quiet");
  spdlog::warn("loud");
  EXPECT_THAT(logged(), HasSubstr("miner: loud"));
  EXPECT_THAT(logged(), Not(HasSubstr("quiet")));
}

TEST_F(LogTest, AnUnknownLevelDoesNotSilence) {
  start_logging(
      {.name = "miner", .file = folder_ / "test.log", .level = "loud", .to_stderr = false});
  spdlog::info("still here");
  EXPECT_THAT(logged(), HasSubstr("log level 'loud' is unknown"));
  EXPECT_THAT(logged(), HasSubstr("still here"));
}

TEST_F(LogTest, BoundedOnDisk) {
  start_logging({.name = "miner",
                 .file = folder_ / "test.log",
                 .level = "info",
                 .to_stderr = false,
                 .file_bytes = 4096});
  for (int i = 0; i < 1000; ++i) spdlog::info("line {} {}", i, std::string(50, 'x'));
  spdlog::default_logger()->flush();
  size_t files = 0;
  uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    ++files;
    bytes += entry.file_size();
  }
  EXPECT_EQ(files, 3u);
  EXPECT_LE(bytes, 3 * 4096u);
  EXPECT_THAT(logged(), HasSubstr("line 999"));
}

TEST_F(LogTest, AFileThatCantBeOpenedIsNoReasonToStop) {
  ASSERT_TRUE(write_file_atomic(folder_ / "file", "").ok());
  testing::internal::CaptureStderr();
  start_logging({.name = "miner", .file = folder_ / "file/test.log", .to_stderr = false});
  spdlog::info("here");
  spdlog::default_logger()->flush();
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, HasSubstr("logging to stderr"));
  EXPECT_THAT(text, HasSubstr("here"));
}

}  // namespace
}  // namespace tessera
