#include "tessera/base/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/temporary_folder.h"

namespace tessera {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  return names;
}

TEST(FilesTest, WritesAndReplacesWholeFiles) {
  const TemporaryFolder folder;
  const std::string path = folder / "a/b/file";
  const std::string binary("\0\xff\n", 3);
  ASSERT_TRUE(write_file_atomic(path, binary).ok());
  EXPECT_EQ(*read_file(path), binary);
  ASSERT_TRUE(write_file_atomic(path, "").ok());
  EXPECT_EQ(*read_file(path), "");
  const std::string large(3'000'000, 'l');
  ASSERT_TRUE(write_pieces_atomic(path, {"head", "", large}).ok());
  EXPECT_EQ(*read_file(path), "head" + large);
  ASSERT_TRUE(write_pieces_atomic(path, {}).ok());
  EXPECT_EQ(*read_file(path), "");
  EXPECT_EQ(names_in(folder / "a/b"),
            std::vector<std::string>{"file"});  // no temporary file is left
}

TEST(FilesTest, SetsTheMode) {
  const TemporaryFolder folder;
  for (const unsigned mode : {0600u, 0644u}) {
    ASSERT_TRUE(write_file_atomic(folder / "file", "x", mode).ok());
    struct stat info {};
    ASSERT_EQ(::stat((folder / "file").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
  }
}

// The target is a folder, so the rename fails after the temporary file was written.
TEST(FilesTest, AFailedWriteLeavesNothing) {
  const TemporaryFolder folder;
  ASSERT_TRUE(make_directories(folder / "target/inner").ok());
  const Status status = write_file_atomic(folder / "target", "x");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(message_of(status), HasSubstr(folder / "target"));
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"target"});
  EXPECT_EQ(names_in(folder / "target"), std::vector<std::string>{"inner"});
}

TEST(FilesTest, WritesIntoTheCurrentFolder) {
  const TemporaryFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const Status status = write_file_atomic("plain", "x");
  std::filesystem::current_path(before);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(*read_file(folder / "plain"), "x");
}

// A reader sees one of the contents that were written, whole.
TEST(FilesTest, ReadersNeverSeeAPart) {
  const TemporaryFolder folder;
  const std::string path = folder / "file";
  const auto content_of = [](int i) { return std::string(10000 + i, static_cast<char>('a' + i)); };
  ASSERT_TRUE(write_file_atomic(path, content_of(0)).ok());
  std::thread writer([&] {
    for (int i = 1; i < 20; ++i) EXPECT_TRUE(write_file_atomic(path, content_of(i)).ok());
  });
  int last = 0;
  while (last < 19) {
    const StatusOr<std::string> content = read_file(path);
    ASSERT_TRUE(content.ok()) << content.status();
    const int index = content->front() - 'a';
    ASSERT_GE(index, last);
    ASSERT_EQ(*content, content_of(index));
    last = index;
  }
  writer.join();
}

TEST(FilesTest, ErrorsNameThePathAndTheReason) {
  const TemporaryFolder folder;
  const Status absent = read_file(folder / "absent").status();
  EXPECT_TRUE(absl::IsNotFound(absent));
  EXPECT_THAT(message_of(absent), HasSubstr(folder / "absent"));
  EXPECT_THAT(message_of(absent), HasSubstr("No such file"));
  EXPECT_TRUE(absl::IsInvalidArgument(read_file(folder.path()).status()));

  ASSERT_TRUE(write_file_atomic(folder / "ten", "0123456789").ok());
  EXPECT_TRUE(read_file(folder / "ten", 10).ok());
  const Status large = read_file(folder / "ten", 9).status();
  EXPECT_TRUE(absl::IsInvalidArgument(large));
  EXPECT_THAT(message_of(large), HasSubstr("10 bytes, more than the 9 allowed"));

  EXPECT_FALSE(write_file_atomic(folder / "ten/below", "x").ok());
  EXPECT_FALSE(make_directories(folder / "ten").ok());
}

TEST(FilesTest, Existence) {
  const TemporaryFolder folder;
  EXPECT_FALSE(file_exists(folder / "a"));
  EXPECT_TRUE(make_directories(folder / "a/b").ok());
  EXPECT_TRUE(make_directories(folder / "a/b").ok());
  EXPECT_TRUE(file_exists(folder / "a"));
}

}  // namespace
}  // namespace tessera
