// Merges of a lone miner in its harness.
#pragma once

#include <gtest/gtest.h>

#include "support/miner_harness.h"

namespace tessera::test {

inline core::MergeDirective directive(core::MergePhase phase, Epoch target) {
  core::MergeDirective merge;
  merge.target = target;
  merge.phase = phase;
  return merge;
}

// A lone stage that has trained `count` microbatches.
inline void train(MinerHarness& lone, MicrobatchId first, int count) {
  for (int i = 0; i < count; ++i) {
    lone.lease(first + static_cast<MicrobatchId>(i));
    lone.tokens_read();
    while (!lone.jobs.empty()) lone.finish_job();
  }
}

inline void apply(MinerHarness& lone, Epoch target, bool participant = true) {
  core::MergeDirective merge = directive(core::MergePhase::kApply, target);
  merge.participant = participant;
  merge.results = {{0, 4, digest_of("result")}};
  lone.direct(merge);
  const auto prepare = lone.take_background<core::miner_effect::PrepareBase>();
  EXPECT_EQ(prepare.participant, participant);
  core::miner_event::BasePrepared prepared;
  prepared.target = target;
  prepared.base = prepared.reference = lone.values();
  prepared.state = digest_of("state of " + std::to_string(target));
  lone.step(prepared);
  ASSERT_TRUE(lone.next_job_is<core::miner_effect::ApplyBase>());
  lone.finish_job();
}

}  // namespace tessera::test
