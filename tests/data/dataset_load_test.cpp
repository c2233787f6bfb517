#include <nlohmann/json.hpp>

#include "data/data_test_files.h"
#include "data/manifest_json.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

class DatasetLoadTest : public DataTest {
 protected:
  void SetUp() override {
    DataTest::SetUp();
    BuildOptions options;
    options.inputs = {write("a.txt", text_of(10000))};
    options.out = path("out");
    options.shard_tokens = 5000;
    ASSERT_TRUE(build_dataset(options).ok());
    manifest_ = json::parse(read("out/manifest.json"));
  }
  std::string refusal(bool verify_hashes) const {
    return message_of_result(load_dataset(path("out"), verify_hashes));
  }
  std::string refusal_of(const json& manifest) const {
    write("out/manifest.json", manifest.dump());
    return refusal(false);
  }

  json manifest_;
};

TEST_F(DatasetLoadTest, AcceptsWhatWasBuilt) {
  EXPECT_EQ(refusal(true), "no error");
  EXPECT_EQ(manifest_["format"], "tessera-dataset");
  EXPECT_EQ(manifest_["version"], 1);
  EXPECT_EQ(manifest_["train"].size(), 2u);
  EXPECT_EQ(manifest_["train"][0]["file"], "train-00000.tok");
  EXPECT_EQ(manifest_["train"][0]["tokens"], 5000);
  EXPECT_EQ(manifest_["train"][0]["bytes"], 10032);
  EXPECT_EQ(manifest_["train"][0]["blake2b"].get<std::string>().size(), 64u);
  EXPECT_EQ(manifest_["fingerprint"].get<std::string>().size(), 64u);
}

TEST_F(DatasetLoadTest, FlippedBytesAreFoundByTheHash) {
  flip_byte("out/train-00001.tok", 5000);
  EXPECT_EQ(refusal(false), "no error");
  EXPECT_THAT(refusal(true), AllOf(HasSubstr("train-00001.tok: BLAKE2b is"),
                                   HasSubstr("manifest has"), HasSubstr("tesseractl data build")));
}

TEST_F(DatasetLoadTest, WrongFilesAreFoundWithoutHashing) {
  const std::string shard = read("out/train-00000.tok");
  write("out/train-00000.tok", shard.substr(0, shard.size() - 2));
  EXPECT_THAT(refusal(false),
              AllOf(HasSubstr("train-00000.tok: its header says 5000"), HasSubstr("10030 bytes")));
  write("out/train-00000.tok", "TST?" + shard.substr(4));
  EXPECT_THAT(refusal(false), HasSubstr("starts with 5453543f"));
  write("out/train-00000.tok", encode_shard_header(2, 256, 1) + "ab");
  EXPECT_THAT(refusal(false), HasSubstr("train-00000.tok: 34 bytes, the manifest has 10032"));
  write("out/train-00000.tok", encode_shard_header(4, 256, 2500) + shard.substr(32));
  EXPECT_THAT(refusal(false), HasSubstr("2500 tokens of 4 bytes, the manifest has 5000 of 2"));
  write("out/train-00000.tok", encode_shard_header(2, 257, 5000) + shard.substr(32));
  EXPECT_THAT(refusal(false), HasSubstr("a vocabulary of 257, the manifest has 256"));
  std::filesystem::remove(path("out/train-00000.tok"));
  EXPECT_THAT(refusal(false), HasSubstr("train-00000.tok: missing, the manifest lists it"));
}

TEST_F(DatasetLoadTest, WithoutAManifest) {
  std::filesystem::remove(path("out/manifest.json"));
  EXPECT_THAT(refusal(false), HasSubstr("no manifest.json in this folder"));
  EXPECT_THAT(message_of_result(load_dataset(path("none"), false)), HasSubstr("not a dataset"));
}

TEST_F(DatasetLoadTest, FileNamesStayInTheFolder) {
  for (const std::string& name :
       std::vector<std::string>{"../a.txt", "/etc/passwd", "..", ".", "", "sub/x.tok", ".hidden",
                                "a\\b", "a\nb", std::string("a\0b", 3), std::string(256, 'x')}) {
    json manifest = manifest_;
    manifest["train"][1]["file"] = name;
    EXPECT_THAT(refusal_of(manifest), HasSubstr("train[1] has a \"file\" that is not a plain"))
        << name;
  }
  json manifest = manifest_;
  manifest["validation"][0]["file"] = "train-00000.tok";
  EXPECT_THAT(refusal_of(manifest),
              HasSubstr("validation[0] names the file train-00000.tok a second"));
}

TEST_F(DatasetLoadTest, EveryFieldIsNeededAndChecked) {
  for (const char* field : {"format", "version", "tokenizer", "vocab", "token_bytes", "train",
                            "validation", "fingerprint"}) {
    json manifest = manifest_;
    manifest.erase(field);
    EXPECT_THAT(refusal_of(manifest), HasSubstr(std::string("\"") + field + "\"")) << field;
    for (const json& wrong :
         {json(), json(-1), json(0.5), json("zz"), json::array({1}), json::object()}) {
      manifest[field] = wrong;
      EXPECT_NE(refusal_of(manifest), "no error") << field << " " << wrong;
    }
  }
  for (const char* field : {"file", "tokens", "bytes", "blake2b"}) {
    for (const json& wrong :
         {json(), json(-1), json(0.5), json("/"), json::array(), json(UINT64_MAX)}) {
      json manifest = manifest_;
      manifest["train"][0][field] = wrong;
      EXPECT_NE(refusal_of(manifest), "no error") << field << " " << wrong;
    }
  }
  json manifest = manifest_;
  manifest["train"] = json::array();
  EXPECT_THAT(refusal_of(manifest), HasSubstr("no training shards"));
  manifest = manifest_;
  manifest["vocab"] = 65537;
  EXPECT_THAT(refusal_of(manifest), HasSubstr("does not go with a vocabulary of 65537"));
  manifest = manifest_;
  manifest["version"] = 2;
  EXPECT_THAT(refusal_of(manifest), HasSubstr("dataset version 2, this program reads version 1"));
  manifest = manifest_;
  manifest["format"] = "something";
  EXPECT_THAT(refusal_of(manifest), HasSubstr("not a dataset folder"));
  EXPECT_THAT(refusal_of(json::array()), HasSubstr("is not an object"));
}

// Whatever happens to the manifest's bytes, it is refused or read, and nothing else.
TEST_F(DatasetLoadTest, DamagedManifestsNeverCrash) {
  const std::string good = read("out/manifest.json");
  for (size_t bytes = 0; bytes + 2 < good.size(); ++bytes) {
    EXPECT_FALSE(manifest_from_json(good.substr(0, bytes), "m").ok()) << bytes;
  }
  size_t refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char byte : {'\0', '"', '}', '9', '\xff'}) {
      std::string corrupt = good;
      corrupt[i] = byte;
      refused += !manifest_from_json(corrupt, "m").ok();
    }
  }
  EXPECT_GT(refused, good.size() * 2);
  EXPECT_FALSE(manifest_from_json(std::string(1000000, '['), "m").ok());
}

TEST_F(DatasetLoadTest, AManifestRoundTrips) {
  const auto stored = read_manifest(path("out"));
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(manifest_to_json(*stored), read("out/manifest.json"));
}

}  // namespace
}  // namespace tessera::data
