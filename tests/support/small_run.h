// A run small enough for tests: a few hundred values a stage, microbatches of eight tokens.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/crypto.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/run_spec.h"

namespace tessera::test {

inline core::RunSpec small_spec(uint32_t stages, uint32_t miners_per_stage) {
  core::RunSpec spec;
  spec.name = "small";
  spec.model = {.layers = stages,
                .width = 8,
                .heads = 2,
                .kv_heads = 2,
                .ffn_width = 16,
                .vocab = 16,
                .context = 4};
  spec.pipeline.stages = stages;
  spec.pipeline.miners_per_stage = miners_per_stage;
  spec.pipeline.max_in_flight = 2;
  spec.training.steps = 8;
  spec.training.microbatch_size = 2;
  spec.training.microbatches_per_step = 2;
  spec.training.warmup_steps = 2;
  spec.training.local_checkpoint_steps = 0;  // tests of it turn it on
  spec.boundary.codec = Codec::kInt8;
  spec.boundary.rank = 4;
  spec.merge.min_microbatches = 4;
  spec.merge.block_values = 256;
  spec.merge.sample_share = 0;  // tests of it turn it on
  spec.timeouts = {
      .lease_ms = 1000, .miner_lost_ms = 300, .peer_ms = 100, .merge_phase_ms = 500, .sync_ms = 10};
  const Status status = core::validate(&spec);
  TESSERA_CHECK(status.ok());
  return spec;
}

inline core::DataPlan small_data() {
  core::DataPlan data;
  data.tokenizer = "bytes";
  data.vocab = 16;
  data.train.push_back(
      {.file = "train-0", .tokens = 1001, .bytes = 2002, .digest = {}, .object = {}});
  return data;
}

inline NodeId node_of(uint64_t number) {
  NodeId node;
  std::memcpy(node.bytes.data(), &number, sizeof(number));
  node.bytes[31] = 1;
  return node;
}

}  // namespace tessera::test
