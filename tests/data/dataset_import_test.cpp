#include "data/data_test_files.h"
#include "tessera/base/bytes.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using DatasetImportTest = DataTest;

std::string raw_ids(const std::vector<uint16_t>& ids) {
  ByteWriter writer;
  for (const uint16_t id : ids) writer.number(id);
  return writer.take();
}

std::string llm_c(const std::vector<uint16_t>& ids) {
  ByteWriter writer;
  writer.number(int32_t{20240520});
  writer.number(int32_t{1});
  writer.number(static_cast<int32_t>(ids.size()));
  for (int i = 3; i < 256; ++i) writer.number(int32_t{0});
  return writer.take() + raw_ids(ids);
}

TEST_F(DatasetImportTest, LinksShardsOfBothFormats) {
  const std::string a = write("edu_fineweb_train_000001.bin", llm_c({1, 2, 50256}));
  const std::string b = write("train.bin", raw_ids({7, 8}));
  const std::string c = write("val.bin", raw_ids({9}));
  const auto manifest = import_bin_shards({a, b}, {c}, 50257, path("out"));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->tokenizer, "external");
  EXPECT_EQ(manifest->vocab, 50257u);
  EXPECT_THAT(names("out"), ElementsAre("manifest.json", "train-00000.bin", "train-00001.bin",
                                        "validation-00000.bin"));
  EXPECT_TRUE(std::filesystem::is_symlink(path("out/train-00000.bin")));
  const auto loaded = load_dataset(path("out"), true);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(tokens_of(*loaded, loaded->train), ElementsAre(1, 2, 50256, 7, 8));
  EXPECT_THAT(tokens_of(*loaded, loaded->validation), ElementsAre(9));
  EXPECT_THAT(message_of(load_tokenizer(path("out")).status()), HasSubstr("imported as token ids"));

  ASSERT_TRUE(import_bin_shards({a, b}, {c}, 50257, path("out")).ok());  // once more is no error
  flip_byte("train.bin", 1);
  EXPECT_THAT(message_of_result(load_dataset(path("out"), true)),
              HasSubstr("train-00001.bin: BLAKE2b is"));
  std::filesystem::remove(b);
  EXPECT_THAT(message_of_result(load_dataset(path("out"), false)),
              HasSubstr("train-00001.bin: missing"));
}

TEST_F(DatasetImportTest, FindsIdsOutsideTheVocabularyAnywhere) {
  std::vector<uint16_t> ids(700000, 5);  // more than one piece of the scan
  for (const size_t place : {size_t{0}, size_t{524287}, size_t{524288}, ids.size() - 1}) {
    ids[place] = 1000;
    EXPECT_THAT(
        message_of_result(import_bin_shards({write("a.bin", llm_c(ids))}, {}, 1000, path("out"))),
        HasSubstr("holds the id 1000, outside the vocabulary of 1000"));
    EXPECT_THAT(
        message_of_result(import_bin_shards({write("a.bin", raw_ids(ids))}, {}, 1000, path("out"))),
        HasSubstr("holds the id 1000"));
    ids[place] = 5;
  }
  EXPECT_FALSE(file_exists(path("out")));
}

TEST_F(DatasetImportTest, Refusals) {
  const std::string a = write("a.bin", raw_ids({1, 2}));
  const std::string same = write("same.bin", raw_ids({1, 2}));
  const auto refusal = [&](std::vector<std::string> train, std::vector<std::string> validation,
                           uint32_t vocab) {
    return message_of_result(import_bin_shards(train, validation, vocab, path("out")));
  };
  EXPECT_THAT(refusal({}, {}, 10), HasSubstr("no training shards"));
  EXPECT_THAT(refusal({a}, {}, 0), HasSubstr("a vocabulary of 0"));
  EXPECT_THAT(refusal({a}, {}, 65537), HasSubstr("16-bit ids"));
  EXPECT_THAT(refusal({path("none.bin")}, {}, 10), HasSubstr("none.bin"));
  EXPECT_THAT(refusal({a}, {same}, 10),
              HasSubstr("for training (train-00000.bin) and for validation"));
  EXPECT_THAT(refusal({write("b.tok", encode_shard_header(2, 9, 0))}, {}, 10),
              HasSubstr("a Tessera token shard"));
  EXPECT_THAT(refusal({write("b.dat", llm_c({1}))}, {}, 10), HasSubstr("must be named .bin"));
  write("out/mine.txt", "x");
  EXPECT_THAT(refusal({a}, {}, 10), HasSubstr("is no dataset that could be replaced"));
}

}  // namespace
}  // namespace tessera::data
