#include "tessera/base/crypto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>
#include <string>

#include "base/temporary_folder.h"
#include "tessera/base/bytes.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

std::string hex_of(const Signature& signature) {
  return to_hex({reinterpret_cast<const char*>(signature.data()), signature.size()});
}

// Known answers of BLAKE2b with 32 bytes of output, unkeyed (Python: hashlib.blake2b(...,
// digest_size=32)).
TEST(DigestTest, KnownAnswers) {
  EXPECT_EQ(digest_of("").hex(),
            "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
  EXPECT_EQ(digest_of("abc").hex(),
            "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
}

TEST(DigestTest, PiecesGiveTheSameAsTheWhole) {
  const std::string text(1000, 'x');
  Hasher hasher;
  for (size_t at = 0, size = 1; at < text.size(); at += size, ++size) {
    hasher.update(std::string_view(text).substr(at, size));
  }
  hasher.update("");
  EXPECT_EQ(hasher.finish(), digest_of(text));
  EXPECT_EQ(Hasher().finish(), digest_of(""));
}

// RFC 8032, section 7.1, test 1.
TEST(SignatureTest, KnownAnswer) {
  const KeyPair pair = KeyPair::from_seed(
      *from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"));
  EXPECT_EQ(pair.id().hex(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
  const Signature signature = pair.sign("");
  EXPECT_EQ(hex_of(signature),
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39"
            "701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b");
  EXPECT_TRUE(verify(pair.id(), "", signature));
}

TEST(SignatureTest, EveryChangeIsRefused) {
  const KeyPair pair = KeyPair::from_seed(std::string(32, 's'));
  const std::string message = "receipt";
  const Signature signature = pair.sign(message);
  ASSERT_TRUE(verify(pair.id(), message, signature));
  for (size_t i = 0; i < signature.size(); ++i) {
    Signature changed = signature;
    changed[i] ^= 0x10;
    EXPECT_FALSE(verify(pair.id(), message, changed)) << i;
  }
  EXPECT_FALSE(verify(pair.id(), "receipT", signature));
  EXPECT_FALSE(verify(pair.id(), "receip", signature));
  EXPECT_FALSE(verify(pair.id(), "", signature));
  EXPECT_FALSE(verify(KeyPair::from_seed(std::string(32, 't')).id(), message, signature));
  EXPECT_FALSE(verify(NodeId{}, message, signature));
  EXPECT_FALSE(verify(pair.id(), message, Signature{}));
}

TEST(KeyFileTest, MadeOnceForItsOwnerOnly) {
  const TemporaryFolder folder;
  const std::string path = folder / "keys/node.key";
  const StatusOr<KeyPair> made = KeyPair::load_or_create(path);
  ASSERT_TRUE(made.ok()) << made.status();
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const StatusOr<KeyPair> loaded = KeyPair::load_or_create(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->id(), made->id());
  EXPECT_EQ(loaded->sign("x"), made->sign("x"));
}

TEST(KeyFileTest, RefusesWhatOthersCanRead) {
  const TemporaryFolder folder;
  const std::string path = folder / "node.key";
  ASSERT_TRUE(KeyPair::load_or_create(path).ok());
  for (const mode_t mode : {0644, 0640, 0604, 0620, 0610}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    const Status status = KeyPair::load_or_create(path).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << mode;
    EXPECT_THAT(message_of(status), HasSubstr("chmod 600 " + path));
  }
  ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
  EXPECT_TRUE(KeyPair::load_or_create(path).ok());
}

TEST(KeyFileTest, NeverReplacesAFileItCantUse) {
  const TemporaryFolder folder;
  const std::string hex = to_hex(std::string(32, 's'));
  for (const std::string& wrong :
       {std::string(), hex.substr(1), hex + "00", std::string("z").append(hex, 1)}) {
    const std::string path = folder / "node.key";
    ASSERT_TRUE(write_file_atomic(path, wrong, 0600).ok());
    EXPECT_TRUE(absl::IsDataLoss(KeyPair::load_or_create(path).status()));
    EXPECT_EQ(*read_file(path), wrong);
  }
  // A path that can't be looked at (here: a folder that is a file) is no missing key.
  const Status status = KeyPair::load_or_create(folder / "node.key/inner").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
}

TEST(KeyFileTest, ReadsAKeyWithALineEnd) {
  const TemporaryFolder folder;
  const std::string seed(32, 's');
  ASSERT_TRUE(write_file_atomic(folder / "node.key", to_hex(seed) + "\r\n", 0600).ok());
  EXPECT_EQ(KeyPair::load_or_create(folder / "node.key")->id(), KeyPair::from_seed(seed).id());
}

TEST(RandomTest, NoTwoAreTheSame) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) seen.insert(random_bytes(16));
  EXPECT_EQ(seen.size(), 100u);
  EXPECT_EQ(random_bytes(0), "");
  EXPECT_NE(random_u64(), random_u64());
  EXPECT_NE(KeyPair::generate().id(), KeyPair::generate().id());
}

}  // namespace
}  // namespace tessera
