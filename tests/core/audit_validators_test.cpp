// Audits on their way through validators, and the verdicts that come of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/audit_board.h"

namespace tessera::test {
namespace {

using core::AuditFinding;
using core::AuditResult;
using core::SegmentCommit;
using testing::HasSubstr;

TEST(Validators, ShareTheAuditsOneEach) {
  Board board;
  board.through(4);
  board.join(100);
  board.join(101);
  const auto first = board.lease_to(100), second = board.lease_to(101);
  ASSERT_TRUE(first && second);
  EXPECT_NE(*first, *second);
  EXPECT_EQ(board.board().audit_for(node_of(100)), first);  // a lost answer is given again
  EXPECT_FALSE(board.board().audit_for(node_of(102)));      // nobody knows this one
}

// The board's miner is on a CPU.
TEST(Validators, AuditMinersOnTheirOwnKindOfDeviceIfThereIsOne) {
  Board board;
  board.through(3);
  board.board().join({node_of(100), 100, "cuda:1", "test"});
  EXPECT_TRUE(board.board().audit_for(node_of(100)));  // nobody else is there
  board.join(101);
  EXPECT_FALSE(board.board().audit_for(node_of(100)));
  EXPECT_TRUE(board.lease_to(101));
  board.board().lose({node_of(101), "silent"}, &board.notes);
  EXPECT_TRUE(board.lease_to(100));
}

TEST(Validators, ADeadOnesAuditGoesToAnother) {
  Board board;
  board.through(2);
  board.join(100);
  board.join(101);
  const auto audit = board.lease_to(100);
  EXPECT_FALSE(board.lease_to(101));
  board.board().lose({node_of(100), "silent"}, &board.notes);
  EXPECT_THAT(board.notes.back().text, HasSubstr("another validator"));
  EXPECT_EQ(board.lease_to(101), audit);
  EXPECT_FALSE(board.board().is_awaited(node_of(100), board.result(*audit)));
  EXPECT_TRUE(board.board().is_awaited(node_of(101), board.result(*audit)));
}

TEST(Validators, ALateOneLosesItsAudit) {
  Board board;
  board.through(2);
  board.join(100);
  board.join(101);
  const auto audit = board.lease_to(100, 5000);
  EXPECT_EQ(board.board().next_deadline(), 6000);
  board.board().expire(5999, &board.notes);
  EXPECT_TRUE(board.state.open.at(*audit).validator);
  board.board().expire(6000, &board.notes);
  EXPECT_FALSE(board.board().audit_for(node_of(100)));  // another is there for it
  EXPECT_EQ(board.lease_to(101, 6000), audit);
}

TEST(Validators, AnAuditThatNobodyFinishesIsGivenUp) {
  Board board;
  board.through(2);
  board.join(100);
  for (uint32_t attempt = 0; attempt < core::kMostAttempts; ++attempt) {
    ASSERT_TRUE(board.lease_to(100, 0)) << attempt;
    board.board().expire(1000, &board.notes);
  }
  EXPECT_TRUE(board.state.open.empty());
  EXPECT_EQ(board.state.given_up, 1u);
}

TEST(Validators, ARestartedOneHasNothingInHand) {
  Board board;
  board.through(2);
  board.join(100);
  const auto audit = board.lease_to(100);
  board.board().join({node_of(100), 999, "cpu", "test"});
  EXPECT_FALSE(board.state.open.at(*audit).validator);
  EXPECT_EQ(board.lease_to(100), audit);
}

TEST(Verdicts, SayWhoAndWhy) {
  Board board;
  board.through(3);
  board.join(100);
  const auto audit = board.lease_to(100);
  core::Verdict verdict = board.board().verdicts_of(board.result(*audit, AuditFinding::kGradient)).at(0);
  EXPECT_EQ(verdict.miner, Board::kMiner);
  EXPECT_EQ(verdict.stage, 2u);
  EXPECT_FALSE(verdict.passed);
  EXPECT_TRUE(core::voids_epoch(verdict));
  EXPECT_THAT(verdict.reason, HasSubstr("gradient: because"));
  EXPECT_TRUE(board.board().verdicts_of(board.result(*audit)).at(0).passed);
  // What could not be judged is held against nobody.
  verdict = board.board().verdicts_of(board.result(*audit, AuditFinding::kUnreadable)).at(0);
  EXPECT_FALSE(core::voids_epoch(verdict));
  board.board().finish({node_of(100), board.result(*audit, AuditFinding::kGradient)}, &board.notes);
  EXPECT_EQ(board.state.failed, 1u);
  EXPECT_EQ(board.state.open.count(*audit), 0u);
  // Late, doubled or uninvited results change nothing.
  board.board().finish({node_of(100), board.result(*audit)}, &board.notes);
  board.board().finish({node_of(101), board.result(*board.lease_to(100))}, &board.notes);
  EXPECT_EQ(board.state.passed, 0u);
}

// The ledger's epochs count, not the commitment's word.
TEST(Verdicts, AreOnTheEpochsThatTheLedgerKnowsTheReceiptsIn) {
  Board board;
  board.segment(board.commit(1));
  board.receipts_of(1, 4);
  SegmentCommit lie = board.commit(2);
  lie.epoch = 99;
  board.segment(lie);
  ASSERT_TRUE(board.state.open.empty());  // the first said epoch 0
  EXPECT_THAT(board.notes.back().text, HasSubstr("said to begin in epoch 0, but that was epoch 4"));
  board.receipts_of(2, 4);
  board.segment(board.commit(3));
  EXPECT_TRUE(board.state.open.empty());
  EXPECT_EQ(board.state.unauditable, 2u);
}

TEST(Verdicts, VoidEveryEpochThatTheSegmentsReceiptsCameIn) {
  Board board;
  board.join(100);
  SegmentCommit begin = board.commit(1);
  begin.epoch = 3;
  board.segment(begin);
  core::Receipt receipt;
  receipt.miner = Board::kMiner;
  for (const uint64_t sequence : {1, 2}) {  // the second comes with the report that the next epoch has begun
    receipt.sequence = sequence;
    board.board().receipt(Board::kMiner, receipt, 2 + sequence, false);
  }
  SegmentCommit end = board.commit(2);
  end.epoch = 4;
  board.segment(end);
  const auto audit = board.lease_to(100);
  ASSERT_TRUE(audit);
  const auto failed = board.board().verdicts_of(board.result(*audit, AuditFinding::kLoss));
  ASSERT_EQ(failed.size(), 2u);
  EXPECT_EQ(failed[0].epoch, 3u);
  EXPECT_EQ(failed[1].epoch, 4u);
  EXPECT_EQ(board.board().verdicts_of(board.result(*audit)).size(), 1u);
}

// Two receipts a segment.
TEST(Auditable, WhoSaysTooOftenThatItsWorkCannotBeRunAgainIsNamed) {
  for (const auto& [whole_every, named] : std::vector<std::pair<uint64_t, bool>>{{1, false}, {2, false}, {10, true}, {100000, true}}) {
    Board board(0);
    board.segment(board.commit(1));
    std::vector<core::Verdict> verdicts;
    for (uint64_t number = 1; number <= core::kJudgedReceipts; ++number) {
      board.receipts_of(number, 6);
      SegmentCommit next = board.commit(number + 1);
      next.epoch = 6;
      next.whole = number % whole_every == 0;
      board.segment(next);
      if (const auto verdict = board.board().judge_auditable(Board::kMiner, 6)) verdicts.push_back(*verdict);
    }
    EXPECT_EQ(verdicts.size(), named ? 2u : 0u) << whole_every;
    for (const core::Verdict& verdict : verdicts) {
      EXPECT_EQ(verdict.kind, core::VerdictKind::kCommitment);
      EXPECT_EQ(verdict.miner, Board::kMiner);
      EXPECT_EQ(verdict.epoch, 6u);
      EXPECT_TRUE(core::voids_epoch(verdict));
      EXPECT_THAT(verdict.reason, HasSubstr("of its last 1024 receipts"));
    }
  }
}

TEST(Auditable, WhoCommitsToNothingIsNamed) {
  Board board(0);
  std::optional<core::Verdict> verdict;
  uint64_t number = 0;
  while (!verdict && number < 3 * core::kMaxSegmentReceipts) {
    board.receipts_of(++number);
    verdict = board.board().judge_auditable(Board::kMiner, 0);
  }
  ASSERT_TRUE(verdict);
  EXPECT_EQ(2 * number, core::kMaxSegmentReceipts);
}

}  // namespace
}  // namespace tessera::test
