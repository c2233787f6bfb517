// A checkpoint of a tiny model, and what the tests of checkpoints do to its files.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "tessera/base/archive.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/base/prng.h"
#include "tessera/core/stage_layout.h"
#include "tessera/store/checkpoint.h"

namespace tessera::store {

namespace fs = std::filesystem;
using absl::StatusCode;
using test::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

inline std::vector<float> values(uint64_t count, uint64_t seed) {
  Prng prng(seed);
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(prng.uniform() - 0.5);
  return out;
}

inline NodeId node(uint8_t first, uint8_t last) {
  NodeId id;
  id.bytes[0] = first;
  id.bytes[31] = last;
  return id;
}

inline ports::CheckpointMiner miner_of(const core::RunSpec& spec, NodeId id, StageIndex stage,
                                       uint64_t seed, bool with_gradient) {
  const uint64_t count = core::stage_value_count(spec, stage);
  ports::CheckpointMiner miner{.node = id,
                               .stage = stage,
                               .schedule_step = 100 + seed,
                               .local_steps = 90 + seed,
                               .fresh = 7,
                               .state = {}};
  miner.state = {.masters = values(count, seed),
                 .first_moment = values(count, seed + 1),
                 .second_moment = values(count, seed + 2),
                 .optimizer_steps = 41 + seed,
                 .gradient = {},
                 .gradient_microbatches = 0};
  if (with_gradient) {
    miner.state.gradient = values(count, seed + 3);
    miner.state.gradient_microbatches = 3;
    miner.state.residual = values(count, seed + 4);
  }
  return miner;
}

// Two anchored stages and three miners, two of which share the first digits of their keys.
inline ports::Checkpoint make_checkpoint(uint64_t done, uint64_t seed = 1) {
  ports::Checkpoint checkpoint;
  checkpoint.run_id = std::string(15, 'r') + '\x01';
  core::RunSpec& spec = checkpoint.spec;
  spec.name = "checkpoint-test";
  spec.model = {.layers = 2, .width = 16, .heads = 2, .kv_heads = 1, .ffn_width = 24, .vocab = 31};
  spec.pipeline.stages = 2;
  spec.boundary.rank = 4;
  spec.boundary.compression = 1;
  spec.checkpoint.keep = 2;
  const Status valid = core::validate(&spec);
  EXPECT_TRUE(valid.ok()) << valid;
  checkpoint.data = {.tokenizer = "bytes", .vocab = 31, .token_bytes = 2, .train = {}};
  checkpoint.data.train.push_back({"train-0.tok", 1000, 2032, digest_of("a"), digest_of("b")});
  checkpoint.next_microbatch = done + 2;
  checkpoint.done = done;
  checkpoint.open = {{done, 1, 0b10}, {done + 1, 0, 0}};
  for (StageIndex stage = 0; stage < 2; ++stage) {
    const uint64_t count = core::stage_value_count(spec, stage);
    checkpoint.stages.push_back({.epoch = 5 + stage,
                                 .merges = 4 + stage,
                                 .weights = values(count, 10 * seed + stage),
                                 .base = values(count, 20 * seed + stage),
                                 .momentum = values(count, 30 * seed + stage)});
  }
  checkpoint.miners = {miner_of(spec, node(1, 1), 0, seed, false),
                       miner_of(spec, node(1, 2), 0, seed + 40, true),
                       miner_of(spec, node(9, 3), 1, seed + 50, true)};
  return checkpoint;
}

inline void expect_equal(const ports::Checkpoint& a, const ports::Checkpoint& b) {
  EXPECT_EQ(a.run_id, b.run_id);
  EXPECT_EQ(encode(a.spec), encode(b.spec));
  EXPECT_EQ(encode(a.data), encode(b.data));
  EXPECT_EQ(a.next_microbatch, b.next_microbatch);
  EXPECT_EQ(a.done, b.done);
  ASSERT_EQ(a.open.size(), b.open.size());
  for (size_t i = 0; i < a.open.size(); ++i) EXPECT_EQ(encode(a.open[i]), encode(b.open[i]));
  ASSERT_EQ(a.stages.size(), b.stages.size());
  for (size_t i = 0; i < a.stages.size(); ++i) {
    EXPECT_EQ(a.stages[i].epoch, b.stages[i].epoch);
    EXPECT_EQ(a.stages[i].merges, b.stages[i].merges);
    EXPECT_EQ(a.stages[i].weights, b.stages[i].weights);
    EXPECT_EQ(a.stages[i].base, b.stages[i].base);
    EXPECT_EQ(a.stages[i].momentum, b.stages[i].momentum);
  }
  ASSERT_EQ(a.miners.size(), b.miners.size());
  for (size_t i = 0; i < a.miners.size(); ++i) {
    EXPECT_EQ(a.miners[i].node, b.miners[i].node);
    EXPECT_EQ(a.miners[i].stage, b.miners[i].stage);
    EXPECT_EQ(a.miners[i].schedule_step, b.miners[i].schedule_step);
    EXPECT_EQ(a.miners[i].local_steps, b.miners[i].local_steps);
    EXPECT_EQ(a.miners[i].fresh, b.miners[i].fresh);
    const core::LocalState &x = a.miners[i].state, &y = b.miners[i].state;
    EXPECT_EQ(x.masters, y.masters);
    EXPECT_EQ(x.first_moment, y.first_moment);
    EXPECT_EQ(x.second_moment, y.second_moment);
    EXPECT_EQ(x.optimizer_steps, y.optimizer_steps);
    EXPECT_EQ(x.gradient, y.gradient);
    EXPECT_EQ(x.gradient_microbatches, y.gradient_microbatches);
  }
}

inline std::string must_write(const std::string& root, const ports::Checkpoint& checkpoint) {
  const StatusOr<std::string> where = CheckpointFolder(root).write(checkpoint);
  EXPECT_TRUE(where.ok()) << where.status();
  return where.ok() ? *where : "";
}

inline std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

inline std::string content_of(const std::string& path) {
  const StatusOr<std::string> content = read_file(path);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? *content : "";
}

inline void overwrite(const std::string& path, const std::string& content) {
  ASSERT_TRUE(write_file_atomic(path, content).ok());
}

inline void expect_error(const std::string& path, StatusCode code, const std::string& part) {
  const Status status = read_checkpoint(path).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(message_of(status), HasSubstr(part));
}

}  // namespace tessera::store
