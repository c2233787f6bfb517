// Files for the tests of the data module.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/files.h"
#include "tessera/data/dataset.h"
#include "tessera/data/token_shard.h"

namespace tessera::data {

// A fresh folder for every test.
class DataTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    root_ = fmt::format("{}tessera-data-{}-{}-{}", testing::TempDir(), ::getpid(),
                        info->test_suite_name(), info->name());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string path(const std::string& name) const { return root_ + "/" + name; }
  std::string write(const std::string& name, std::string_view content) const {
    EXPECT_TRUE(write_file_atomic(path(name), content).ok());
    return path(name);
  }
  std::string write_gzip(const std::string& name, const std::string& content) const {
    const gzFile file = gzopen(path(name).c_str(), "wb");
    EXPECT_NE(file, nullptr);
    EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())),
              static_cast<int>(content.size()));
    EXPECT_EQ(gzclose(file), Z_OK);
    return path(name);
  }
  std::string read(const std::string& name) const {
    const auto content = read_file(path(name));
    EXPECT_TRUE(content.ok()) << content.status();
    return content.ok() ? *content : "";
  }
  std::vector<std::string> names(const std::string& folder) const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path(folder))) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  void flip_byte(const std::string& name, size_t offset) const {
    std::string content = read(name);
    ASSERT_LT(offset, content.size());
    content[offset] = static_cast<char>(content[offset] ^ 1);
    write(name, content);
  }

  std::string root_;
};

// Text of exactly `bytes` bytes in short lines; another `seed` gives other text.
inline std::string text_of(size_t bytes, uint32_t seed = 0) {
  std::string text;
  for (uint32_t line = 0; text.size() < bytes; ++line) {
    text += "line " + std::to_string(line) + " of " + std::to_string(seed) + " says " +
            std::to_string((line * 2654435761u + seed) % 9973) + "\n";
  }
  text.resize(bytes);
  return text;
}

inline std::string message_of_result(const StatusOr<DatasetManifest>& result) {
  return result.ok() ? "no error" : message_of(result.status());
}

// All tokens of a split, one after the other.
inline std::vector<uint32_t> tokens_of(const DatasetManifest& manifest,
                                       const std::vector<core::TokenShard>& shards) {
  std::vector<uint32_t> all;
  for (const core::TokenShard& shard : shards) {
    const auto reader = TokenShardReader::open(manifest.folder + "/" + shard.file);
    EXPECT_TRUE(reader.ok()) << reader.status();
    const auto ids = (*reader)->read(0, shard.tokens);
    EXPECT_TRUE(ids.ok()) << ids.status();
    all.insert(all.end(), ids->begin(), ids->end());
  }
  return all;
}

inline std::string bytes_of(const std::vector<uint32_t>& ids) {
  return std::string(ids.begin(), ids.end());
}

}  // namespace tessera::data
