// Receipts for work that was not done are found; those that faults leave behind are not.
#include "tessera/core/receipt_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"

namespace tessera::test {
namespace {

using core::Receipt;
using core::ReceiptWatch;
using testing::HasSubstr;

// Three stages of three miners: miner 3 s + k is the k-th of stage s.
class Watched {
 public:
  static MinerIndex miner(StageIndex stage, uint64_t k) { return static_cast<MinerIndex>(3 * stage + k % 3); }
  // Of one that did the microbatch between these neighbours (of the k-th miner of each stage).
  Receipt receipt(MicrobatchId microbatch, StageIndex stage, uint64_t k, uint64_t before, uint64_t after, uint32_t attempt = 0) {
    Receipt made;
    made.miner = miner(stage, k);
    made.sequence = ++sequences_[made.miner];
    made.incarnation = 1;
    made.stage = stage;
    made.microbatch = microbatch;
    made.attempt = attempt;
    made.accumulated = true;
    if (stage > 0) {
      made.upstream = miner(stage - 1, before);
      made.input_hash = hash("forward", microbatch, stage - 1);
      made.gradient_out_hash = hash("backward", microbatch, stage - 1);
    }
    if (stage < 2) {
      made.downstream = miner(stage + 1, after);
      made.output_hash = hash("forward", microbatch, stage);
      made.gradient_in_hash = hash("backward", microbatch, stage);
    }
    return made;
  }
  void read(const Receipt& receipt) {
    if (const auto found = watch.read(receipt, 3, epoch)) findings.push_back(*found);
  }
  // The pathway a, b, c; receipts come from the tail.
  void pathway(MicrobatchId microbatch, uint64_t a, uint64_t b, uint64_t c, uint32_t attempt = 0) {
    read(receipt(microbatch, 2, c, b, 0, attempt));
    read(receipt(microbatch, 1, b, a, c, attempt));
    read(receipt(microbatch, 0, a, 0, b, attempt));
  }

  ReceiptWatch watch;
  Epoch epoch = 0;
  std::vector<ReceiptWatch::Finding> findings;

 private:
  static Digest hash(const char* what, MicrobatchId microbatch, StageIndex boundary) {
    return digest_of(std::string(what) + std::to_string(microbatch) + "/" + std::to_string(boundary));
  }
  std::map<MinerIndex, uint64_t> sequences_;
};

TEST(ReceiptWatch, OneGradientInTheSumTwiceIsEnough) {
  for (const uint32_t attempt : {0u, 3u}) {
    Watched run;
    run.pathway(5, 0, 1, 2);
    EXPECT_TRUE(run.findings.empty());
    run.read(run.receipt(5, 1, 1, 2, 0, attempt));
    ASSERT_EQ(run.findings.size(), 1u);
    EXPECT_EQ(run.findings[0].miner, Watched::miner(1, 1));
    EXPECT_THAT(run.findings[0].reason, HasSubstr("receipts 1 and 2 of one process"));
    run.read(run.receipt(5, 1, 1, 2, 0, attempt));
    EXPECT_EQ(run.findings.size(), 1u);  // once an epoch
    run.epoch = 1;
    run.read(run.receipt(5, 1, 1, 2, 0, attempt));
    EXPECT_EQ(run.findings.size(), 2u);
    EXPECT_EQ(run.findings[1].epoch, 1u);
  }
}

TEST(ReceiptWatch, AnotherProcessOrAnInputGradientAloneIsNoSecondGradient) {
  Watched run;
  run.pathway(5, 0, 1, 2);
  Receipt again = run.receipt(5, 1, 1, 0, 2, 1);
  again.accumulated = false;  // only the input's gradient was wanted
  run.read(again);
  again = run.receipt(5, 1, 1, 0, 2, 2);
  again.incarnation = 2;  // started again: what it had accumulated may be gone
  run.read(again);
  EXPECT_TRUE(run.findings.empty());
}

// Every tenth receipt of miner 4 is for a microbatch that miners 3 or 5 did.
uint64_t invented_until_found(Watched& run, uint64_t microbatches) {
  Prng prng(7);
  for (MicrobatchId id = 0; id < microbatches; ++id) {
    const uint64_t a = prng.below(3), b = prng.below(3), c = prng.below(3);
    const bool before = prng.below(2) == 0;
    const bool invents = b != 1 && prng.below(20) == 0;
    if (invents && before) run.read(run.receipt(id, 1, 1, a, c));
    run.pathway(id, a, b, c);
    if (invents && !before) run.read(run.receipt(id, 1, 1, a, c));
    if (!run.findings.empty()) return id;
  }
  return microbatches;
}

TEST(ReceiptWatch, WhatItsNeighboursSignedForAnotherIsFoundBeforeAndAfterTheTruth) {
  Watched run;
  EXPECT_LT(invented_until_found(run, 2000), 600u);
  ASSERT_EQ(run.findings.size(), 1u);
  EXPECT_EQ(run.findings[0].miner, Watched::miner(1, 1));
  EXPECT_THAT(run.findings[0].reason, HasSubstr("8 of its"));
}

TEST(ReceiptWatch, OnePairOfNeighboursCannotMakeAnotherLookLikeALiar) {
  Watched run;
  for (MicrobatchId id = 0; id < 1000; ++id) {
    run.pathway(id, id, 1, id);  // its honest work
    run.pathway(10000 + id, 0, 0, 2);
    run.read(run.receipt(10000 + id, 1, 1, 0, 2));  // they gave it the microbatch too, and hid that
  }
  EXPECT_TRUE(run.findings.empty());
}

TEST(ReceiptWatch, FaultsLeaveNoEvidence) {
  Watched run;
  for (MicrobatchId id = 0; id < 1000; ++id) {
    const uint64_t a = id, b = id + 1, c = id + 2;
    switch (id % 5) {
      case 0:  // the lease ran out when most was done; another attempt was whole
        run.read(run.receipt(id, 2, c + 1, b + 1, 0, 0));
        run.pathway(id, a, b, c, 1);
        run.read(run.receipt(id, 1, b + 1, a, c + 1, 0));
        break;
      case 1: {  // given to another miner, and said so
        run.read(run.receipt(id, 1, b, a, c));
        run.read(run.receipt(id, 2, c, b + 1, 0));
        run.read(run.receipt(id, 1, b + 1, a, c));
        Receipt repaired = run.receipt(id, 0, a, 0, b + 1);
        repaired.repaired = true;
        run.read(repaired);
        break;
      }
      case 2:  // a neighbour died and its receipt with it
        run.read(run.receipt(id, 2, c, b, 0));
        run.read(run.receipt(id, 1, b, a, c));
        break;
      case 3:  // a second branch of the same attempt that nobody asked for
        run.pathway(id, a, b, c);
        run.read(run.receipt(id, 2, c + 1, b + 1, 0));
        run.read(run.receipt(id, 1, b + 1, a, c + 1));
        break;
      default:
        run.pathway(id, a, b, c);
    }
  }
  EXPECT_TRUE(run.findings.empty());
}

TEST(ReceiptWatch, ForgetsWhatLeftItsWindowAndWhatWillBeLeasedAgain) {
  Watched run;
  run.pathway(0, 0, 0, 0);
  for (MicrobatchId id = 1; id <= ReceiptWatch::kMaxWatched; ++id) run.read(run.receipt(id, 2, 0, 0, 0));
  run.read(run.receipt(0, 1, 0, 0, 0));
  EXPECT_TRUE(run.findings.empty());
  run.watch.forget();
  run.read(run.receipt(1, 2, 0, 0, 0));
  EXPECT_TRUE(run.findings.empty());
}

}  // namespace
}  // namespace tessera::test
