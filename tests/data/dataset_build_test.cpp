#include <set>

#include "data/data_test_files.h"
#include "data/tokenizer_folder.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class DatasetBuildTest : public DataTest {
 protected:
  BuildOptions options(std::vector<std::string> inputs) const {
    BuildOptions options;
    options.inputs = std::move(inputs);
    options.out = path("out");
    return options;
  }
  struct stat stat_of(const std::string& name) const {
    struct stat info {};
    EXPECT_EQ(::stat(path(name).c_str(), &info), 0);
    return info;
  }
};

TEST_F(DatasetBuildTest, ATextFileIsSplitAtItsTail) {
  const std::string text = text_of(10000);
  const auto manifest = build_dataset(options({write("a.txt", text)}));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->tokenizer, "bytes");
  EXPECT_EQ(manifest->vocab, 256u);
  EXPECT_EQ(manifest->token_bytes, 2u);
  const std::string end(1, '\0');
  EXPECT_EQ(bytes_of(tokens_of(*manifest, manifest->train)), text.substr(0, 9500) + end);
  EXPECT_EQ(bytes_of(tokens_of(*manifest, manifest->validation)), text.substr(9500) + end);
  EXPECT_THAT(names("out"),
              ElementsAre("manifest.json", "train-00000.tok", "validation-00000.tok"));
  EXPECT_THAT(names(""), ElementsAre("a.txt", "out"));

  const auto loaded = load_dataset(path("out"), true);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const core::DataPlan plan = loaded->plan();
  EXPECT_EQ(plan.tokenizer, "bytes");
  EXPECT_EQ(plan.vocab, 256u);
  ASSERT_EQ(plan.train.size(), 1u);
  EXPECT_EQ(plan.train[0].tokens, 9501u);
  const auto tokenizer = load_tokenizer(path("out"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->decode((*tokenizer)->encode("abc")), "abc");
}

TEST_F(DatasetBuildTest, EveryKindOfInputInAStableOrder) {
  write("in/2.txt", text_of(1000, 2));
  std::filesystem::create_directories(path("in/sub"));
  write_gzip("in/1.txt.gz", text_of(1000, 1));
  write("in/sub/3.jsonl", "{\"text\":\"" + std::string(800, 'x') + "\"}\n{\"text\":\"yy\"}\n");
  write_gzip("last.jsonl.gz", "{\"text\":\"zz\"}\n");
  BuildOptions build = options({path("in"), path("last.jsonl.gz")});
  build.validation_share = 0;
  const auto manifest = build_dataset(build);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_TRUE(manifest->validation.empty());
  const std::string end(1, '\0');
  EXPECT_EQ(bytes_of(tokens_of(*manifest, manifest->train)),
            text_of(1000, 1) + end + text_of(1000, 2) + end + std::string(800, 'x') + end + "yy" +
                end + "zz" + end);
}

// No document of the validation split is in the training split, and together they are everything.
TEST_F(DatasetBuildTest, SplitsOfManyDocumentsAreDisjointAndComplete) {
  std::string lines;
  std::set<std::string> all;
  for (int i = 0; i < 200; ++i) {
    const std::string document = text_of(50 + i % 7, 1000 + i);
    all.insert(document);
    std::string escaped;
    for (const char byte : document)
      escaped += byte == '\n' ? std::string("\\n") : std::string(1, byte);
    lines += "{\"text\":\"" + escaped + "\"}\n";
  }
  ASSERT_EQ(all.size(), 200u);
  const auto manifest = build_dataset(options({write("a.jsonl", lines)}));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  const auto documents = [&](const std::vector<core::TokenShard>& shards) {
    std::set<std::string> out;
    std::string document;
    for (const char byte : bytes_of(tokens_of(*manifest, shards))) {
      if (byte != '\0') {
        document += byte;
        continue;
      }
      out.insert(document);
      document.clear();
    }
    EXPECT_EQ(document, "");
    return out;
  };
  std::set<std::string> train = documents(manifest->train);
  const std::set<std::string> validation = documents(manifest->validation);
  EXPECT_EQ(validation.size(), 10u);  // every 20th
  EXPECT_EQ(train.size(), 190u);
  train.insert(validation.begin(), validation.end());
  EXPECT_EQ(train, all);
}

TEST_F(DatasetBuildTest, CutsShards) {
  BuildOptions build = options({write("a.txt", text_of(5000))});
  build.shard_tokens = 1000;
  const auto manifest = build_dataset(build);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  ASSERT_EQ(manifest->train.size(), 5u);
  EXPECT_EQ(manifest->train[4].tokens, 751u);
  EXPECT_EQ(manifest->train[4].file, "train-00004.tok");
  EXPECT_EQ(bytes_of(tokens_of(*manifest, manifest->train)), text_of(5000).substr(0, 4750) + '\0');
}

TEST_F(DatasetBuildTest, BuildsAgainOnlyWhenSomethingChanged) {
  const std::string input = write("a.txt", text_of(10000));
  ASSERT_TRUE(build_dataset(options({input})).ok());
  const struct stat first = stat_of("out/manifest.json");
  bool worked = false;
  BuildOptions build = options({input});
  build.progress = [&](uint64_t, uint64_t) { worked = true; };
  const auto again = build_dataset(build);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(worked);
  EXPECT_EQ(stat_of("out/manifest.json").st_ino, first.st_ino);
  EXPECT_EQ(again->train[0].tokens, 9501u);

  build.validation_share = 0.1;  // another option
  EXPECT_EQ(build_dataset(build)->train[0].tokens, 9001u);
  EXPECT_TRUE(worked);
  write("a.txt", text_of(12000));  // another input
  EXPECT_EQ(build_dataset(build)->train[0].tokens, 10801u);
  EXPECT_THAT(names(""), ElementsAre("a.txt", "out"));
}

TEST_F(DatasetBuildTest, MendsACorruptDataset) {
  const std::string input = write("a.txt", text_of(10000));
  const auto built = build_dataset(options({input}));
  ASSERT_TRUE(built.ok());
  flip_byte("out/train-00000.tok", 100);
  EXPECT_FALSE(load_dataset(path("out"), true).ok());
  const auto mended = build_dataset(options({input}));
  ASSERT_TRUE(mended.ok()) << mended.status();
  EXPECT_EQ(mended->train[0].digest, built->train[0].digest);
  EXPECT_TRUE(load_dataset(path("out"), true).ok());
}

TEST_F(DatasetBuildTest, ReplacesNothingOfAnyoneElse) {
  const std::string input = write("a.txt", text_of(10000));
  write("out/thesis.txt", "years of work");
  EXPECT_THAT(message_of_result(build_dataset(options({input}))),
              HasSubstr("exists and is no dataset that could be replaced"));
  EXPECT_EQ(read("out/thesis.txt"), "years of work");
  BuildOptions build = options({input});
  build.force = true;
  ASSERT_TRUE(build_dataset(build).ok());
  EXPECT_FALSE(file_exists(path("out/thesis.txt")));

  // A dataset with a stranger in it is as good as a stranger.
  write("out/notes.txt", "mine");
  build = options({input});
  build.validation_share = 0.1;
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("holds notes.txt"));
  EXPECT_EQ(read("out/notes.txt"), "mine");

  build.out = write("file", "x");
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("is not a folder"));
  EXPECT_THAT(names(""), ElementsAre("a.txt", "file", "out"));
}

TEST_F(DatasetBuildTest, NeverReplacesItsInputs) {
  write("corpus/a.txt", text_of(10000));
  BuildOptions build = options({path("corpus/a.txt")});
  build.force = true;
  for (const std::string& out : {path("corpus"), path(""), path("corpus/a.txt"), root_ + "/x/.."}) {
    build.out = out;
    EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("holds the input")) << out;
  }
  build.out = "/";
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("name a new folder"));
  build.out = "";
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("no output folder"));
  build.inputs = {path("corpus")};
  build.out = path("corpus/dataset");
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("lies in the input folder"));
  EXPECT_EQ(read("corpus/a.txt"), text_of(10000));
}

TEST_F(DatasetBuildTest, ClearsWhatAKilledBuildLeft) {
  write(".out.tessera-building/train-00000.tok", "half a shard");
  write(".out.tessera-replaced/manifest.json", "old");
  ASSERT_TRUE(build_dataset(options({write("a.txt", text_of(10000))})).ok());
  EXPECT_THAT(names(""), ElementsAre("a.txt", "out"));
}

TEST_F(DatasetBuildTest, AFailedBuildLeavesTheOldDataset) {
  const std::string input = write("a.txt", text_of(10000));
  ASSERT_TRUE(build_dataset(options({input})).ok());
  const std::string before = read("out/manifest.json");
  EXPECT_FALSE(build_dataset(options({input, write("bad.jsonl", "{")})).ok());
  EXPECT_EQ(read("out/manifest.json"), before);
  EXPECT_TRUE(load_dataset(path("out"), true).ok());
  EXPECT_THAT(names(""), ElementsAre("a.txt", "bad.jsonl", "out"));
}

TEST_F(DatasetBuildTest, InputsThatChangeMeanwhileAreNoticed) {
  const std::string input = write("a.txt", text_of(10000));
  BuildOptions build = options({input});
  build.progress = [&](uint64_t, uint64_t) { write("a.txt", text_of(11000)); };
  const auto result = build_dataset(build);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(message_of_result(result), HasSubstr("changed while they were read"));
  EXPECT_FALSE(file_exists(path("out")));
}

TEST_F(DatasetBuildTest, OneBuildAtATime) {
  BuildOptions inner = options({write("a.txt", text_of(10000))});
  BuildOptions outer = inner;
  std::string second;
  outer.progress = [&](uint64_t, uint64_t) { second = message_of_result(build_dataset(inner)); };
  EXPECT_TRUE(build_dataset(outer).ok());
  EXPECT_THAT(second, HasSubstr("another process is building this dataset"));
}

TEST_F(DatasetBuildTest, ReportsProgressToTheEnd) {
  BuildOptions build = options({write("a.txt", text_of(9 << 20)), write("b.txt", text_of(1000))});
  std::vector<uint64_t> done;
  const uint64_t total = (9 << 20) + 1000;
  build.progress = [&](uint64_t now, uint64_t all) {
    EXPECT_EQ(all, total);
    done.push_back(now);
  };
  ASSERT_TRUE(build_dataset(build).ok());
  EXPECT_GE(done.size(), 3u);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), total);
}

TEST_F(DatasetBuildTest, RefusesTooLittleTextAndOddOptions) {
  EXPECT_THAT(message_of_result(build_dataset(options({write("a.txt", text_of(1000))}))),
              HasSubstr("the validation split 51 tokens, at least 129 are needed"));
  EXPECT_THAT(message_of_result(build_dataset(options({write("empty.txt", "")}))),
              HasSubstr("the training split 0 tokens"));
  EXPECT_FALSE(file_exists(path("out")));
  for (const double share : {-0.1, 0.51, std::numeric_limits<double>::quiet_NaN()}) {
    BuildOptions build = options({path("a.txt")});
    build.validation_share = share;
    EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("validation_share is"));
  }
  BuildOptions build = options({path("a.txt")});
  build.shard_tokens = 0;
  EXPECT_THAT(message_of_result(build_dataset(build)), HasSubstr("shard_tokens is 0"));
}

}  // namespace
}  // namespace tessera::data
