#include "tessera/base/sealing.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "temporary_folder.h"
#include "tessera/base/files.h"

namespace tessera::test {
namespace {

SealKey key_of(char c) { return SealKey::from_secret(std::string(32, c)); }

TEST(Sealing, OpensWithItsKeyAndLabelOnly) {
  const Digest key = key_of('a').derive("entry 1");
  for (const std::string& plain : {std::string(), std::string("secret"), std::string(100'000, 'x')}) {
    const std::string sealed = seal(key, "label", plain);
    EXPECT_EQ(open_sealed(key, "label", sealed), plain);
    EXPECT_EQ(open_sealed(key, "other", sealed), std::nullopt);
    EXPECT_EQ(open_sealed(key_of('a').derive("entry 2"), "label", sealed), std::nullopt);
    EXPECT_EQ(open_sealed(key_of('b').derive("entry 1"), "label", sealed), std::nullopt);
    if (!plain.empty()) {
      EXPECT_EQ(sealed.find(plain), std::string::npos);
    }
  }
  EXPECT_NE(seal(key, "label", "secret"), seal(key, "label", "secret"));  // a nonce of its own
}

TEST(Sealing, RefusesWhatWasChanged) {
  const Digest key = key_of('a').derive("entry");
  const std::string sealed = seal(key, "", "secret");
  for (size_t i = 0; i < sealed.size(); ++i) {
    std::string changed = sealed;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_EQ(open_sealed(key, "", changed), std::nullopt) << i;
    EXPECT_EQ(open_sealed(key, "", sealed.substr(0, i)), std::nullopt) << i;
  }
}

TEST(Sealing, KeepsItsKeyInAFile) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/ledger.key";
  EXPECT_TRUE(absl::IsNotFound(SealKey::load(path).status()));
  const auto made = SealKey::load_or_create(path);
  ASSERT_TRUE(made.ok());
  const auto read = SealKey::load(path);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(made->derive("x"), read->derive("x"));
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(SealKey::load(path).status()));
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  ASSERT_TRUE(write_file_atomic(path, "short", 0600).ok());
  EXPECT_TRUE(absl::IsDataLoss(SealKey::load(path).status()));
}

}  // namespace
}  // namespace tessera::test
