// Compares the tokenizer with libsentencepiece on models trained here, then uses one for a dataset.
#include "data/data_test_files.h"
#include "data/sentencepiece_oracle.h"
#include "data/tokenizer_folder.h"
#include "tessera/base/prng.h"
#include "tessera/data/tokenizer.h"

namespace tessera::data {
namespace {

using testing::HasSubstr;

using Options = std::map<std::string, std::string>;

std::vector<std::string> sentences() {
  const std::vector<std::string> words = {"the",      "stage", "miner", "passes",  "activations",
                                          "gradient", "merge", "a",     "of",      "to",
                                          "tokens",   "naïve", "Größe", "données", "日本語",
                                          "モデル",   "1024",  "0.5",   "don't",   "(x)"};
  Prng random(11);
  std::vector<std::string> out;
  for (int i = 0; i < 400; ++i) {
    std::string line;
    for (uint64_t word = 0; word < 4 + random.below(8); ++word) {
      line += (word > 0 ? " " : "") + words[random.below(words.size())];
    }
    out.push_back(line);
  }
  return out;
}

// Every kind of model that is supported, with the normalisations that are in use.
const std::map<std::string, Options>& variants() {
  static const auto* all = new std::map<std::string, Options>{
      {"unigram", {{"vocab_size", "300"}, {"model_type", "unigram"}}},
      {"unigram_bytes",
       {{"vocab_size", "480"}, {"model_type", "unigram"}, {"byte_fallback", "true"}}},
      {"unigram_symbols",
       {{"vocab_size", "300"}, {"user_defined_symbols", "<sep>,<sep>>,the m,日"}}},
      {"bpe", {{"vocab_size", "300"}, {"model_type", "bpe"}}},
      {"bpe_symbols",
       {{"vocab_size", "300"}, {"model_type", "bpe"}, {"user_defined_symbols", "<sep>,ge,  "}}},
      {"bpe_like_llama",
       {{"vocab_size", "480"},
        {"model_type", "bpe"},
        {"byte_fallback", "true"},
        {"normalization_rule_name", "identity"},
        {"remove_extra_whitespaces", "false"},
        {"split_digits", "true"}}},
      {"folded_without_prefix",
       {{"vocab_size", "300"},
        {"model_type", "unigram"},
        {"normalization_rule_name", "nmt_nfkc_cf"},
        {"add_dummy_prefix", "false"},
        {"unk_surface", "?"}}},
      {"unescaped_spaces",
       {{"vocab_size", "480"}, {"model_type", "bpe"}, {"byte_fallback", "true"}}},
  };
  return *all;
}

const std::string& model_of(const std::string& variant) {
  static auto* models = new std::map<std::string, std::string>;
  auto [entry, is_new] = models->try_emplace(variant);
  if (is_new) {
    entry->second = SentencePieceOracle::train(sentences(), variants().at(variant));
    // The trainer can't make such a model. A second normalizer_spec (field 3) is merged into the
    // first: its field 5, escape_whitespaces, becomes 0.
    if (variant == "unescaped_spaces") entry->second += std::string("\x1a\x02\x28\x00", 4);
  }
  return entry->second;
}

// Words the model knows, characters it does not, control characters, wide and combining forms,
// broken UTF-8.
std::string random_text(Prng* random) {
  static const std::vector<std::string> parts = {" ",
                                                 "  ",
                                                 "\n",
                                                 "\t",
                                                 "the",
                                                 "miner",
                                                 "Miner",
                                                 "stage",
                                                 "activations",
                                                 "gradient",
                                                 "merge",
                                                 "日本",
                                                 "日本語",
                                                 "モデル",
                                                 "ﾃﾞｰﾀ",
                                                 "Ａ",
                                                 "①",
                                                 "½",
                                                 "ﬁ",
                                                 "e\xcc\x81",
                                                 "é",
                                                 "ß",
                                                 "ẞ",
                                                 "Ω",
                                                 "한국",
                                                 "👍🏽",
                                                 "xyz",
                                                 "7",
                                                 "1024",
                                                 "<sep>",
                                                 "<sep>>",
                                                 "<s>",
                                                 "</s>",
                                                 "<unk>",
                                                 "<0x0A>",
                                                 "▁",
                                                 "\xe3\x80\x80",
                                                 "\xc2\xa0",
                                                 "\xef\xbb\xbf",
                                                 "\xe2\x80\x8b",
                                                 "\x01",
                                                 "\x7f",
                                                 "\xff",
                                                 "\xe2\x96",
                                                 "\xc0\x80",
                                                 "\xed\xa0\x80",
                                                 "\xf4\x90\x80\x80",
                                                 "\xf0\x9f\x91",
                                                 "\xef\xbf\xbd",
                                                 "don't",
                                                 "(x)",
                                                 "..."};
  std::string text;
  for (uint64_t count = random->below(24); count > 0; --count) {
    text += parts[random->below(parts.size())];
    if (random->below(8) == 0) text += static_cast<char>(random->below(256));
  }
  return text;
}

class SentencePieceVariantTest : public testing::TestWithParam<std::string> {};

TEST_P(SentencePieceVariantTest, AgreesWithTheReferenceImplementation) {
  const std::string& model = model_of(GetParam());
  ASSERT_FALSE(model.empty()) << "training failed";
  const SentencePieceOracle oracle(model);
  ASSERT_TRUE(oracle.ok());
  const auto tokenizer = make_sentencepiece(model, "test.model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ASSERT_EQ((*tokenizer)->vocab(), oracle.vocab());
  EXPECT_EQ((*tokenizer)->end_of_document(), oracle.end_id());
  Prng random(5);
  for (int i = 0; i < 4000; ++i) {
    const std::string text = random_text(&random);
    const std::vector<uint32_t> expected = oracle.encode(text);
    ASSERT_EQ((*tokenizer)->encode(text), expected) << i << ": " << to_hex(text) << " " << text;
    ASSERT_EQ(*(*tokenizer)->decode(expected), oracle.decode(expected)) << i << ": " << text;
    std::vector<uint32_t> any(random.below(12));
    for (uint32_t& id : any) id = static_cast<uint32_t>(random.below(oracle.vocab()));
    ASSERT_EQ(*(*tokenizer)->decode(any), oracle.decode(any)) << i;
  }
  for (const std::string& sentence : sentences()) {
    ASSERT_EQ((*tokenizer)->encode(sentence), oracle.encode(sentence)) << sentence;
  }
}

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const auto& [name, options] : variants()) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Models, SentencePieceVariantTest, testing::ValuesIn(variant_names()),
                         [](const auto& info) { return info.param; });

TEST(SentencePiece, DecodeRefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = make_sentencepiece(model_of("bpe"), "test.model");
  const auto text = (*tokenizer)->decode({(*tokenizer)->vocab()});
  EXPECT_THAT(message_of(text.status()), HasSubstr("outside the vocabulary"));
}

// Every prefix, and bytes of the model set at random: refused or usable, never a crash.
TEST(SentencePiece, DamagedModelsAreSafe) {
  const std::string& model = model_of("unigram_bytes");
  for (size_t bytes = 0; bytes < model.size(); bytes += 1 + bytes / 50) {
    const auto tokenizer = make_sentencepiece(model.substr(0, bytes), "test.model");
    if (tokenizer.ok()) (*tokenizer)->encode("the miner 日本 ①");
  }
  EXPECT_FALSE(make_sentencepiece("", "test.model").ok());
  EXPECT_FALSE(make_sentencepiece("not a model", "test.model").ok());
  Prng random(3);
  for (int i = 0; i < 300; ++i) {
    std::string damaged = model;
    for (int change = 0; change < 20; ++change) {
      // Half of the changes hit the pieces, which are a small part of the file, the others the
      // character map.
      const size_t range = change % 2 == 0 ? 8000 : damaged.size();
      damaged[random.below(range)] = static_cast<char>(random.next());
    }
    const auto tokenizer = make_sentencepiece(damaged, "test.model");
    if (!tokenizer.ok()) continue;
    const auto ids = (*tokenizer)->encode(random_text(&random));
    for (const uint32_t id : ids) ASSERT_LT(id, (*tokenizer)->vocab());
    EXPECT_TRUE((*tokenizer)->decode(ids).ok());
  }
}

TEST(SentencePiece, UnsupportedModelsAreNamed) {
  const auto refusal = [](Options options) {
    options.emplace("vocab_size", "60");
    const std::string model = SentencePieceOracle::train(sentences(), options);
    EXPECT_FALSE(model.empty());
    const auto tokenizer = make_sentencepiece(model, "test.model");
    return tokenizer.ok() ? "no error" : message_of(tokenizer.status());
  };
  EXPECT_THAT(refusal({{"model_type", "char"}}), HasSubstr("model type 4 is not supported"));
  EXPECT_THAT(refusal({{"model_type", "word"}}), HasSubstr("model type 3 is not supported"));
  EXPECT_THAT(refusal({{"treat_whitespace_as_suffix", "true"}, {"vocab_size", "300"}}),
              HasSubstr("treat_whitespace_as_suffix"));
  EXPECT_THAT(refusal({{"eos_id", "-1"}, {"vocab_size", "300"}}),
              HasSubstr("no control piece </s>"));
}

using SentencePieceDatasetTest = DataTest;

TEST_F(SentencePieceDatasetTest, BuildsADatasetWithTheModelInside) {
  const std::string model = write("m.model", model_of("unigram"));
  std::string text;
  for (const std::string& sentence : sentences()) text += sentence + "\n";
  BuildOptions options;
  options.inputs = {write("a.txt", text)};
  options.out = path("out");
  options.sentencepiece_model = model;
  const auto manifest = build_dataset(options);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->tokenizer, "sentencepiece");
  const auto tokenizer = load_tokenizer(path("out"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(manifest->vocab, (*tokenizer)->vocab());
  std::vector<uint32_t> ids = tokens_of(*manifest, manifest->train);
  EXPECT_EQ(ids.back(), (*tokenizer)->end_of_document());
  ids.pop_back();
  std::vector<uint32_t> tail = tokens_of(*manifest, manifest->validation);
  EXPECT_EQ(tail.back(), (*tokenizer)->end_of_document());
  tail.pop_back();
  ids.insert(ids.end(), tail.begin(), tail.end());
  EXPECT_EQ(ids, (*tokenizer)->encode(text));
  EXPECT_TRUE(load_dataset(path("out"), true).ok());

  // The same model under another name is the same dataset; another model is another one.
  const auto inode = [&] {
    struct stat info {};
    EXPECT_EQ(::stat(path("out/manifest.json").c_str(), &info), 0);
    return info.st_ino;
  };
  const auto before = inode();
  options.sentencepiece_model = write("copy.model", model_of("unigram"));
  ASSERT_TRUE(build_dataset(options).ok());
  EXPECT_EQ(inode(), before);
  options.sentencepiece_model = write("other.model", model_of("bpe"));
  ASSERT_TRUE(build_dataset(options).ok());
  EXPECT_NE(inode(), before);

  write("out/tokenizer.model", model_of("unigram"));
  EXPECT_THAT(message_of(load_tokenizer(path("out")).status()),
              HasSubstr("not the tokenizer this dataset was made with"));
  EXPECT_FALSE(load_dataset(path("out"), true).ok());
  std::filesystem::remove(path("out/tokenizer.model"));
  EXPECT_THAT(message_of(load_tokenizer(path("out")).status()), HasSubstr("tokenizer.model"));
}

TEST_F(SentencePieceDatasetTest, AMissingModelIsNamed) {
  EXPECT_THAT(message_of(load_sentencepiece(path("none.model")).status()), HasSubstr("none.model"));
}

}  // namespace
}  // namespace tessera::data
