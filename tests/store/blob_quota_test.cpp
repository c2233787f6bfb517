#include "tessera/store/blob_quota.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace tessera::store {
namespace {

using testing::HasSubstr;

constexpr TimeMs kRefillMs = 1000;
constexpr uint64_t kBase = 10 * kBlobOverheadBytes;

NodeId key_of(uint64_t number) {
  NodeId key;
  std::memcpy(key.bytes.data(), &number, sizeof(number));
  return key;
}

TEST(BlobQuota, AKeyStoresItsBaseAndNoMore) {
  BlobQuota quota(kRefillMs);
  EXPECT_TRUE(absl::IsPermissionDenied(quota.take(key_of(1), 1, 0)));
  quota.open(key_of(1), kBase, 2 * kBase, 0);
  quota.open(key_of(2), kBase, 2 * kBase, 0);
  for (int blob = 0; blob < 10; ++blob) EXPECT_TRUE(quota.take(key_of(1), 0, 0).ok());  // empty ones take room too
  const Status refused = quota.take(key_of(1), 0, 0);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(message_of(refused), HasSubstr("has stored 2560 bytes that the run has not asked for, and may store 0 more"));
  EXPECT_TRUE(quota.take(key_of(2), kBase - kBlobOverheadBytes, 0).ok());  // each key has its own
  quota.open(key_of(1), kBase, 2 * kBase, 0);                              // registering again gives nothing
  EXPECT_FALSE(quota.take(key_of(1), 0, 0).ok());
  quota.close(key_of(1));
  EXPECT_TRUE(absl::IsPermissionDenied(quota.take(key_of(1), 0, 0)));
}

TEST(BlobQuota, WhatTheRunAsksForFitsAndIsNotHoarded) {
  BlobQuota quota(kRefillMs);
  quota.open(key_of(1), kBase, 2 * kBase, 0);
  EXPECT_TRUE(quota.take(key_of(1), kBase - kBlobOverheadBytes, 0).ok());
  quota.credit(key_of(1), kBase);
  EXPECT_TRUE(quota.take(key_of(1), kBase - kBlobOverheadBytes, 0).ok());
  EXPECT_FALSE(quota.take(key_of(1), 0, 0).ok());
  for (int time = 0; time < 5; ++time) quota.credit(key_of(1), kBase);  // and puts none of it
  EXPECT_TRUE(quota.take(key_of(1), 2 * kBase - kBlobOverheadBytes, 0).ok());
  EXPECT_FALSE(quota.take(key_of(1), 0, 0).ok());
  quota.credit(key_of(9), kBase);  // of nobody
}

TEST(BlobQuota, TheBaseComesBackWithTime) {
  BlobQuota quota(kRefillMs);
  quota.open(key_of(1), kBase, 2 * kBase, 0);
  ASSERT_TRUE(quota.take(key_of(1), kBase - kBlobOverheadBytes, 0).ok());
  EXPECT_FALSE(quota.take(key_of(1), 0, kRefillMs / 10 - 1).ok());
  EXPECT_TRUE(quota.take(key_of(1), 0, kRefillMs / 10 + 1).ok());
  EXPECT_TRUE(quota.take(key_of(1), kBase - kBlobOverheadBytes, 100 * kRefillMs).ok());
  EXPECT_FALSE(quota.take(key_of(1), 0, 100 * kRefillMs).ok());
}

TEST(BlobQuota, WhatWasThereAlreadyIsGivenBack) {
  BlobQuota quota(kRefillMs);
  quota.open(key_of(1), kBase, 2 * kBase, 0);
  for (int time = 0; time < 100; ++time) {
    ASSERT_TRUE(quota.take(key_of(1), kBase / 2, 0).ok());
    quota.give_back(key_of(1), kBase / 2);
  }
}

}  // namespace
}  // namespace tessera::store
