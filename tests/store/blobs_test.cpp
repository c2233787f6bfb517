#include "tessera/store/blobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/temporary_folder.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

constexpr uint64_t kNoLimit = UINT64_MAX;

std::unique_ptr<BlobStore> open_or_fail(const std::string& folder,
                                        uint64_t limit_bytes = kNoLimit) {
  StatusOr<std::unique_ptr<BlobStore>> store = BlobStore::open(folder, limit_bytes);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

std::string path_in(const std::string& folder, const Digest& digest) {
  return folder + "/" + digest.hex().substr(0, 2) + "/" + digest.hex().substr(2);
}

size_t files_in(const std::string& folder) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    count += entry.is_regular_file() ? 1 : 0;
  }
  return count;
}

TEST(BlobStoreTest, StoresUnderTheHash) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder / "blobs");
  const StatusOr<Digest> digest = store->put("abc");
  ASSERT_TRUE(digest.ok());
  EXPECT_EQ(*digest, digest_of("abc"));
  EXPECT_TRUE(store->has(*digest));
  EXPECT_EQ(*store->get(*digest), "abc");
  EXPECT_EQ(*read_file(folder / "blobs/bd/"
                                "dd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
            "abc");
  EXPECT_EQ(store->bytes(), 3u);

  const Status absent = store->get(digest_of("absent")).status();
  EXPECT_TRUE(absl::IsNotFound(absent));
  EXPECT_FALSE(store->has(digest_of("absent")));
}

TEST(BlobStoreTest, EmptyAndLargestContent) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  const std::string largest(kMaxBlobBytes, 'x');
  EXPECT_EQ(*store->get(*store->put("")), "");
  EXPECT_EQ(*store->get(*store->put(largest)), largest);
  EXPECT_TRUE(absl::IsInvalidArgument(store->put(largest + "x").status()));
  EXPECT_EQ(store->bytes(), kMaxBlobBytes);
}

TEST(BlobStoreTest, CountsAgainAtOpenAndRemovesWhatACrashLeft) {
  const TemporaryFolder folder;
  std::vector<Digest> digests;
  {
    const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
    for (int i = 0; i < 300; ++i) digests.push_back(*store->put(std::string(i, 'a')));
  }
  ASSERT_TRUE(write_file_atomic(folder / "00/tmp-Xy1Z2w", "half a bl").ok());
  ASSERT_TRUE(write_file_atomic(folder / "00/README", "a stranger's file").ok());
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  EXPECT_EQ(store->bytes(), 300u * 299 / 2);
  EXPECT_FALSE(file_exists(folder / "00/tmp-Xy1Z2w"));
  EXPECT_TRUE(file_exists(folder / "00/README"));
  std::sort(digests.begin(), digests.end());
  EXPECT_EQ(store->list(), digests);
}

// The file stays the same one: nothing is written anew.
TEST(BlobStoreTest, SecondPutCostsNoWrite) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  const Digest digest = *store->put("content");
  struct stat before {};
  struct stat after {};
  ASSERT_EQ(::stat(path_in(folder.path(), digest).c_str(), &before), 0);
  EXPECT_EQ(*store->put("content"), digest);
  ASSERT_EQ(::stat(path_in(folder.path(), digest).c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
  EXPECT_EQ(store->bytes(), 7u);
}

TEST(BlobStoreTest, KeepsItsLimit) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path(), 10);
  const Digest first = *store->put("123456");
  const Status full = store->put("abcde").status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(message_of(full), HasSubstr("holds 6 of at most 10 bytes"));
  EXPECT_EQ(store->bytes(), 6u);
  EXPECT_TRUE(store->put("123456").ok());  // there already
  EXPECT_TRUE(store->put("abcd").ok());
  EXPECT_EQ(store->bytes(), 10u);

  EXPECT_TRUE(store->remove(first).ok());
  EXPECT_TRUE(store->remove(first).ok());
  EXPECT_FALSE(store->has(first));
  EXPECT_EQ(store->bytes(), 4u);
  EXPECT_TRUE(store->put("abcde").ok());
}

TEST(BlobStoreTest, DamageIsFoundAtGetAndTheFileRemoved) {
  for (const std::string& damaged :
       {std::string("sound contenT"), std::string("sound"), std::string(), std::string(13, '\0'),
        std::string(kMaxBlobBytes + 1, 's')}) {
    SCOPED_TRACE(damaged.size());
    const TemporaryFolder folder;
    Digest digest;
    {
      const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
      digest = *store->put("sound content");
    }
    ASSERT_TRUE(write_file_atomic(path_in(folder.path(), digest), damaged).ok());
    const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
    EXPECT_EQ(store->bytes(), damaged.size());
    EXPECT_TRUE(absl::IsDataLoss(store->get(digest).status()));
    EXPECT_FALSE(store->has(digest));
    EXPECT_TRUE(absl::IsNotFound(store->get(digest).status()));
    EXPECT_EQ(store->bytes(), 0u);
    EXPECT_EQ(*store->get(*store->put("sound content")), "sound content");
  }
}

TEST(BlobStoreTest, PutReplacesADamagedCopy) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  const Digest digest = *store->put("sound content");
  ASSERT_TRUE(write_file_atomic(path_in(folder.path(), digest), "sound contenT").ok());
  EXPECT_EQ(*store->put("sound content"), digest);
  EXPECT_EQ(*store->get(digest), "sound content");
  EXPECT_EQ(store->bytes(), 13u);
}

// Threads put, get and remove the same few contents. A get sees the whole content or none of it,
// and in the end the count agrees with the files.
TEST(BlobStoreTest, ConcurrentUseKeepsContentAndCountRight) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  constexpr int kContents = 5;
  const auto content_of = [](int i) { return std::string(2000 + i, static_cast<char>('a' + i)); };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 200; ++round) {
        const int index = (round * 7 + thread * 3) % kContents;
        const StatusOr<Digest> digest = store->put(content_of(index));
        EXPECT_TRUE(digest.ok()) << digest.status();
        const StatusOr<std::string> content = store->get(digest_of(content_of(index)));
        if (content.ok()) {
          EXPECT_EQ(*content, content_of(index));
        } else {
          EXPECT_TRUE(absl::IsNotFound(content.status())) << content.status();
        }
        if (round % 5 == thread) {
          EXPECT_TRUE(store->remove(digest_of(content_of(index))).ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t expected = 0;
  for (int i = 0; i < kContents; ++i) {
    if (store->has(digest_of(content_of(i)))) expected += content_of(i).size();
  }
  EXPECT_EQ(store->bytes(), expected);
  EXPECT_EQ(files_in(folder.path()), store->list().size());
}

// Exactly the blobs that fit are admitted, however the threads interleave.
TEST(BlobStoreTest, ConcurrentPutsNeverPassTheLimit) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path(), 1000);
  std::vector<std::thread> threads;
  std::atomic<int> admitted{0};
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 10; ++i) {
        std::string content(100, static_cast<char>('a' + thread));
        content[0] = static_cast<char>(i);
        const StatusOr<Digest> digest = store->put(content);
        if (digest.ok()) {
          ++admitted;
        } else {
          EXPECT_TRUE(absl::IsResourceExhausted(digest.status()));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(admitted, 10);
  EXPECT_EQ(store->bytes(), 1000u);
  EXPECT_EQ(files_in(folder.path()), 10u);
}

// A sweep takes what nobody names, unless it is young or was used a moment ago.
TEST(BlobStoreTest, SweepRemovesOnlyWhatIsUnnamedAndOld) {
  const TemporaryFolder folder;
  const std::unique_ptr<BlobStore> store = open_or_fail(folder.path());
  const Digest named = *store->put("named");
  const Digest young = *store->put("young");
  const Digest asked_for = *store->put("asked for");
  const Digest put_again = *store->put("put again");
  const Digest old = *store->put("old and unnamed");
  const auto long_ago = std::filesystem::file_time_type::clock::now() - std::chrono::hours(2);
  for (const Digest& digest : {named, asked_for, put_again, old}) {
    std::filesystem::last_write_time(path_in(folder.path(), digest), long_ago);
  }
  EXPECT_TRUE(store->has(asked_for));
  EXPECT_EQ(*store->put("put again"), put_again);

  const StatusOr<uint64_t> removed = store->sweep({named}, std::chrono::hours(1));
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_EQ(*removed, std::string("old and unnamed").size());
  EXPECT_FALSE(store->has(old));
  for (const Digest& digest : {named, young, asked_for, put_again}) EXPECT_TRUE(store->has(digest));
  EXPECT_EQ(*store->sweep({named}, std::chrono::hours(1)), 0u);
}

TEST(BlobStoreTest, OpenSaysWhatIsWrong) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_file_atomic(folder / "file", "").ok());
  const Status status = BlobStore::open(folder / "file", kNoLimit).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(message_of(status), HasSubstr(folder / "file"));
}

}  // namespace
}  // namespace tessera::store
