#include "tessera/config/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "config/config_files.h"
#include "tessera/base/prng.h"

namespace tessera::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string same(const RunConfig& config) { return encode(config.spec); }

TEST(RunConfigFile, ReadsEveryKindOfValue) {
  const auto config = load_run_config(write_config(R"(
run: {name: trial-1}
model: {layers: 5, embedding_norm: false, rope_theta: 5e5}
pipeline:
  stage_layers: [2, 2, 1]
training:
  seed: 18446744073709551615
  decay: linear
boundary: {kind: residual, codec: bf16, compression: 32x}
merge: {optimizer_moments: average}
data:
  text: [a.txt, "b c.jsonl"]
  validation_share: 0.25
)"),
                                      {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.name, "trial-1");
  EXPECT_FALSE(config->spec.model.embedding_norm);
  EXPECT_EQ(config->spec.model.rope_theta, 500000);
  EXPECT_THAT(config->spec.pipeline.stage_layers, ElementsAre(2, 2, 1));
  EXPECT_EQ(config->spec.training.seed, UINT64_MAX);
  EXPECT_EQ(config->spec.training.decay, core::LrDecay::kLinear);
  EXPECT_EQ(config->spec.boundary.kind, core::BoundaryKind::kResidual);
  EXPECT_EQ(config->spec.boundary.compression, 32);
  EXPECT_EQ(config->spec.boundary.rank, 8u);
  EXPECT_EQ(config->spec.merge.optimizer_moments, core::MergeMoments::kAverage);
  EXPECT_THAT(config->data.text, ElementsAre("a.txt", "b c.jsonl"));
  EXPECT_EQ(config->data.validation_share, 0.25);
}

TEST(RunConfigFile, NothingGivenIsTheDefaults) {
  core::RunSpec defaults;
  ASSERT_TRUE(core::validate(&defaults).ok());
  for (const char* content : {"", "# nothing\n", "model:\n  # layers: 7\ntraining:\n"}) {
    const auto config = load_run_config(write_config(content), {});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(same(*config), encode(defaults)) << content;
  }
  const auto without_file = load_run_config("", {});
  ASSERT_TRUE(without_file.ok()) << without_file.status();
  EXPECT_EQ(same(*without_file), encode(defaults));
}

TEST(RunConfigFile, AbsentFile) {
  const auto config = load_run_config("no/such.yaml", {});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(message_of(config.status()), "no/such.yaml: can't open: No such file or directory");
}

struct Refusal {
  std::string content;
  std::string message;
};
const Refusal kFileRefusals[] = {
    // Unknown keys.
    {"training:\n  stpes: 3\n", "c.yaml:2: training.stpes: unknown key; did you mean 'steps'?"},
    {"model:\n  layers: 6\n\ntrainig:\n  steps: 3\n",
     "c.yaml:4: trainig: unknown key; did you mean 'training'?"},
    {"steps: 3\n", "c.yaml:1: steps: unknown key; did you mean 'training.steps'?"},
    {"model:\n  stages: 3\n",
     "c.yaml:2: model.stages: unknown key; did you mean 'pipeline.stages'?"},
    {"checkpoint:\n  wallpaper: 3\n",
     "c.yaml:2: checkpoint.wallpaper: unknown key; the keys here are: every_microbatches, keep"},
    {"wallpaper: 3\n",
     "c.yaml:1: wallpaper: unknown key; the keys here are: run, model, pipeline, training, "
     "boundary, merge, "
     "timeouts, audit, checkpoint, data"},
    {"training.steps: 3\n",
     "c.yaml:1: training.steps: unknown key; in a file write it as 'steps' in the section "
     "'training'"},
    {"a: &x {steps: 3}\ntraining:\n  <<: *x\n",
     "c.yaml:1: a: unknown key; the keys here are: run, model, pipeline, training, boundary, "
     "merge, timeouts, "
     "audit, checkpoint, data"},
    // Twice.
    {"training:\n  steps: 3\n  seed: 1\n  steps: 4\n",
     "c.yaml:4: training.steps: given twice; the first is on line 2"},
    {"training:\n  steps: 3\nmodel:\ntraining:\n  seed: 4\n",
     "c.yaml:4: training: given twice; the first is on line 1"},
    // Wrong types.
    {"training: 3\n", "c.yaml:1: training: expected a section of keys, got '3'"},
    {"training: [steps]\n", "c.yaml:1: training: expected a section of keys, got a list"},
    {"training:\n  steps: many\n", "c.yaml:2: training.steps: expected a whole number, got 'many'"},
    {"training:\n  steps:\n", "c.yaml:2: training.steps: expected a whole number, got nothing"},
    {"training:\n  steps: [3]\n", "c.yaml:2: training.steps: expected a whole number, got a list"},
    {"training:\n  steps: {a: 3}\n",
     "c.yaml:2: training.steps: expected a whole number, got a section"},
    {"training:\n  steps: \"3\"\n",
     "c.yaml:2: training.steps: expected a whole number, got the quoted text '3'"},
    {"training:\n  steps: !!str 3\n",
     "c.yaml:2: training.steps: expected a whole number without a YAML tag, got the tag "
     "'tag:yaml.org,2002:str'"},
    {"model:\n  embedding_norm: yes\n",
     "c.yaml:2: model.embedding_norm: expected true or false, got 'yes'"},
    {"run:\n  name:\n",
     "c.yaml:2: run.name: expected a text, got nothing; write \"\" for an empty one"},
    {"data:\n  text: [a, [b]]\n", "c.yaml:2: data.text: item 2: expected a text, got a list"},
    {"data:\n  path: \"a\\0b\"\n",
     "c.yaml:2: data.path: expected a text on one line, without control characters"},
    {"data:\n  path: |\n    a\n    b\n",
     "c.yaml:2: data.path: expected a text on one line, without control characters"},
    {"pipeline:\n  stage_layers: 6\n",
     "c.yaml:2: pipeline.stage_layers: expected a list of whole numbers, got '6'"},
    {"pipeline:\n  stage_layers: [2, 2, -2]\n",
     "c.yaml:2: pipeline.stage_layers: item 3: expected a whole number, got the negative -2"},
    {"boundary:\n  kind: anchor\n",
     "c.yaml:2: boundary.kind: expected one of none, iota, residual, anchored, got 'anchor'"},
    {"boundary:\n  compression: x128\n",
     "c.yaml:2: boundary.compression: expected a ratio such as 128 or 128x, got 'x128'"},
    {"boundary:\n  compression: x\n",
     "c.yaml:2: boundary.compression: expected a ratio such as 128 or 128x, got 'x'"},
    // Numbers that would be bent.
    {"training:\n  steps: 1.5\n", "c.yaml:2: training.steps: expected a whole number, got '1.5'"},
    {"training:\n  steps: 1e3\n", "c.yaml:2: training.steps: expected a whole number, got '1e3'"},
    {"training:\n  steps: 0x10\n", "c.yaml:2: training.steps: expected a whole number, got '0x10'"},
    {"training:\n  steps: -1\n",
     "c.yaml:2: training.steps: expected a whole number, got the negative -1"},
    {"training:\n  steps: 010\n",
     "c.yaml:2: training.steps: expected a whole number without leading zeros, got '010'"},
    {"training:\n  seed: 18446744073709551616\n",
     "c.yaml:2: training.seed: 18446744073709551616 is too large; the largest number here is "
     "18446744073709551615"},
    {"model:\n  width: 4294967552\n",
     "c.yaml:2: model.width: 4294967552 is too large; the largest number here is 4294967295"},
    {"merge:\n  quorum: 0.8.1\n", "c.yaml:2: merge.quorum: expected a number, got '0.8.1'"},
    {"merge:\n  quorum: .nan\n", "c.yaml:2: merge.quorum: expected a number, got '.nan'"},
    {"merge:\n  quorum: inf\n", "c.yaml:2: merge.quorum: expected a number, got 'inf'"},
    {"merge:\n  quorum: 1e999\n",
     "c.yaml:2: merge.quorum: 1e999 does not fit into a 64-bit floating-point number"},
    // Impossible values, at the key's line or as a default.
    {"model:\n  width: 256\n\n  heads: 5\n",
     "c.yaml:4: model.heads: model.width 256 is not a multiple of 5; every head needs the same "
     "width"},
    {"model:\n  layers: 2\n",
     "c.yaml: pipeline.stages (default 3): 3 stages can't share model.layers 2; every stage needs "
     "at least 1 "
     "layer"},
    {"data:\n  validation_share: 0.6\n",
     "c.yaml:2: data.validation_share: 0.6 is not allowed; it must be 0 to 0.5"},
    {"data:\n  jsonl_field: ''\n",
     "c.yaml:2: data.jsonl_field: empty; name the field of a line that holds the text"},
    {"data:\n  text: [a]\nmodel:\n  vocab: 200\n",
     "c.yaml:4: model.vocab: 200 is too small for data.text read as bytes; it must be at least "
     "256, or give "
     "data.sentencepiece_model"},
    // Not the YAML of a configuration.
    {"- a\n- b\n", "c.yaml:1: expected sections and keys, got a list"},
    {"text", "c.yaml:1: expected sections and keys, got 'text'"},
    {"model:\n  [a, b]: 3\n", "c.yaml:2: a key must be a plain text, got a list"},
    {"model:\n---\nmodel:\n", "c.yaml: more than one YAML document"},
};
TEST(RunConfigFile, RefusalsSayWhereAndWhat) {
  for (const Refusal& refusal : kFileRefusals) {
    const auto config = load_run_config(write_config(refusal.content), {});
    EXPECT_EQ(message_of_result(config), refusal.message) << refusal.content;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// What follows the place is the YAML library's own message, which differs between its versions.
TEST(RunConfigFile, BrokenYamlNamesTheLine) {
  for (const char* content : {"model:\n  layers: 6\n heads: 4\n", "run:\n\ntraining: *nobody\n",
                              "run:\n  name: x\n  b: }\n", "run:\n\n  name: \"open\n"}) {
    const std::string message = message_of_result(load_run_config(write_config(content), {}));
    EXPECT_THAT(message, testing::MatchesRegex("c.yaml:[34]: not valid YAML: .+")) << content;
  }
}

TEST(RunConfigFile, HostileSizesAreRefused) {
  EXPECT_EQ(message_of_result(load_run_config(write_config(std::string((1 << 20) + 1, '#')), {})),
            "c.yaml: 1048577 bytes, more than the 1048576 allowed here");
  EXPECT_THAT(message_of_result(load_run_config(write_config(std::string(200000, '[')), {})),
              StartsWith("c.yaml:1: not valid YAML: "));
  std::string many = "data: {text: [a";
  for (int i = 0; i < 4096; ++i) many += ",a";
  EXPECT_EQ(message_of_result(load_run_config(write_config(many + "]}"), {})),
            "c.yaml:1: data.text: 4097 items are more than the 4096 that a list may have");
}

// Random damage to a good file: it loads or is refused with the file's name, and never anything
// else.
TEST(RunConfigFile, DamageNeverCrashes) {
  const auto defaults = load_run_config("", {});
  ASSERT_TRUE(defaults.ok());
  const std::string good = to_yaml(*defaults);
  Prng prng(7);
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    for (uint64_t edits = 1 + prng.below(4); edits > 0; --edits) {
      const size_t at = prng.below(bad.size());
      const char random = static_cast<char>(prng.below(256));
      if (prng.below(3) == 0) {
        bad.erase(at, 1 + prng.below(20));
      } else {
        bad[at] = prng.below(2) == 0 ? "{}[]:,&*!|>'\"%@`#-?\n\t"[prng.below(21)] : random;
      }
    }
    const auto config = load_run_config(write_config(bad), {});
    if (config.ok()) continue;
    ++refused;
    EXPECT_THAT(message_of(config.status()), StartsWith("c.yaml")) << bad;
  }
  EXPECT_GT(refused, 100);
}

TEST(Overrides, GoBeforeTheFileAndTheLaterOneWins) {
  const std::string path = write_config("training:\n  steps: 3\n  seed: 5\n");
  const auto config = load_run_config(
      path, {"training.steps=4", "training.steps=7", "boundary.compression=32x",
             "data.text=[a.txt, 'b,c.txt']", "data.path=one.txt", "pipeline.stage_layers=[1,1,4]"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.training.steps, 7u);
  EXPECT_EQ(config->spec.training.seed, 5u);
  EXPECT_EQ(config->spec.boundary.rank, 28u);
  EXPECT_THAT(config->data.text, ElementsAre("a.txt", "b,c.txt"));
  EXPECT_THAT(config->spec.pipeline.stage_layers, ElementsAre(1, 1, 4));
}

struct OverrideRefusal {
  std::string text;
  std::string message;
};
const OverrideRefusal kOverrideRefusals[] = {
    {"training.stpes=3", "unknown key; did you mean training.steps?"},
    {"trainin.steps=3", "unknown key; did you mean training.steps?"},
    {"model.stages=3", "unknown key; did you mean pipeline.stages?"},
    {"steps=3", "unknown key; did you mean training.steps?"},
    {"checkpoint.wallpaper=3",
     "unknown key; the keys of 'checkpoint' are: every_microbatches, keep"},
    {"training=3", "'training' is a section; set one of its keys, such as training.seed"},
    {"training.steps", "expected key=value, such as training.steps=200"},
    {"training.steps=", "expected a whole number, got nothing"},
    {"training.steps=few", "expected a whole number, got 'few'"},
    {"training.steps=0", "training.steps: 0 is not allowed; it must be 1 to 100000000"},
    {"data.text=[a, {b: c}]", "item 2: expected a text, got a section"},
    {"merge.quorum=2", "merge.quorum: 2 is not allowed; it must be above 0 and at most 1"},
};
TEST(Overrides, RefusalsRepeatTheOverride) {
  for (const OverrideRefusal& refusal : kOverrideRefusals) {
    const auto config = load_run_config("", {refusal.text});
    EXPECT_EQ(message_of_result(config), "--set " + refusal.text + ": " + refusal.message);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(message_of_result(load_run_config("", {"training.steps=["})),
              StartsWith("--set training.steps=[: not valid YAML: "));
}

TEST(Overrides, ACompressionThatARankSilencesIsRefused) {
  const std::string path = write_config("boundary:\n  rank: 4\n");
  EXPECT_EQ(message_of_result(load_run_config(path, {"boundary.compression=32"})),
            "--set boundary.compression=32: boundary.compression: changes nothing, because "
            "boundary.rank is set to "
            "4 and goes first; add --set boundary.rank=0");
  const auto config = load_run_config(path, {"boundary.compression=32", "boundary.rank=0"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.boundary.rank, 28u);
}

TEST(ToYaml, LoadsBackToTheSame) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"boundary.kind=none", "boundary.codec=bf16"},
      {"pipeline.stages=2", "pipeline.stage_layers=[5, 1]", "training.seed=18446744073709551615"},
      {"training.learning_rate=0.1", "model.norm_epsilon=3.3333333333333333e-7", "merge.quorum=1"},
      {"boundary.compression=33.3", "boundary.codec=int8", "training.decay=constant"},
      {"data.text=['a \"b\" \\c', '# no comment', 'ü: 1', '~']", "data.path='true'",
       "data.validation_share=0", "model.embedding_norm=false"},
  };
  for (const auto& overrides : cases) {
    const auto config = load_run_config("", overrides);
    ASSERT_TRUE(config.ok()) << config.status();
    const std::string yaml = to_yaml(*config);
    const auto again = load_run_config(write_config(yaml), {});
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << yaml;
    EXPECT_EQ(same(*again), same(*config));
    EXPECT_EQ(again->data, config->data);
    EXPECT_EQ(to_yaml(*again), yaml);
  }
}

std::vector<std::string> cells_of(const std::string& row) {
  std::vector<std::string> cells;
  size_t begin = 2;
  for (size_t end = row.find(" |", begin - 1); end != std::string::npos;
       end = row.find(" |", begin - 1)) {
    cells.push_back(row.substr(begin, std::max(end, begin) - begin));
    begin = end + 3;
  }
  return cells;
}

// The documented ranges are written apart from the checks: this holds them together.
TEST(Reference, DocumentsTheRangesThatAreChecked) {
  std::istringstream lines(run_config_reference_markdown());
  int checked = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| `")) continue;
    const std::vector<std::string> cells = cells_of(line);
    ASSERT_EQ(cells.size(), 5u) << line;
    const std::string key = cells[0].substr(1, cells[0].size() - 2);
    const std::string& allowed = cells[3];
    const bool number =
        cells[1] == "a whole number" || cells[1] == "a number" || cells[1].starts_with("a ratio");
    if (!number || key == "training.seed" || allowed.ends_with("model.width")) continue;
    ++checked;
    const std::string refusal = "it must be " + allowed;
    const std::string too_much =
        key == "checkpoint.every_microbatches" ? "1000000000001" : "4294967295";
    EXPECT_THAT(message_of_result(load_run_config("", {key + "=" + too_much})),
                testing::EndsWith(refusal));
    const size_t last_space = allowed.rfind(' ');
    const std::string high = allowed.substr(last_space + 1);
    const bool high_is_in = allowed.find("below") == std::string::npos;
    const std::string at_high = message_of_result(load_run_config("", {key + "=" + high}));
    EXPECT_EQ(at_high.find(refusal) == std::string::npos, high_is_in) << key << ": " << at_high;
    const bool low_is_in = !allowed.starts_with("above");
    const std::string low =
        low_is_in && !allowed.starts_with("at least") ? allowed.substr(0, allowed.find(' ')) : "0";
    const std::string at_low = message_of_result(load_run_config("", {key + "=" + low}));
    EXPECT_EQ(at_low.find(refusal) == std::string::npos, low_is_in) << key << ": " << at_low;
    if (low == "1") {
      EXPECT_THAT(message_of_result(load_run_config("", {key + "=0"})), testing::EndsWith(refusal));
    }
  }
  EXPECT_GE(checked, 35);
}

TEST(Reference, HasEveryKeyOfTheYaml) {
  const std::string reference = run_config_reference_markdown();
  const auto config = load_run_config("", {});
  ASSERT_TRUE(config.ok());
  std::istringstream lines(to_yaml(*config));
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(' ')) {
      section = line.substr(0, line.find(':'));
      EXPECT_THAT(reference, HasSubstr("### " + section + "\n"));
      continue;
    }
    EXPECT_THAT(reference,
                HasSubstr("| `" + section + "." + line.substr(2, line.find(':') - 2) + "` |"));
  }
  EXPECT_THAT(reference,
              HasSubstr("| `merge.quorum` | a number | `0.8` | above 0 and at most 1 | share of a "
                        "stage's live miners that must qualify before a merge starts |"));
}

}  // namespace
}  // namespace tessera::config
