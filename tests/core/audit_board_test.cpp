// What becomes an audit; and that a miner can't tell.
#include "tessera/core/audit_board.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/audit_board.h"
#include "tessera/core/orchestrator.h"
#include "tessera/core/stage_layout.h"

namespace tessera::test {
namespace {

using core::AuditBoard;
using core::AuditFinding;
using core::AuditResult;
using core::SegmentCommit;
using testing::HasSubstr;

TEST(Picks, AreAShareThatOnlyTheSecretDecides) {
  Board board(0.1);
  AuditBoard other(board.state, board.spec, 4712);
  int picked = 0, both = 0;
  for (uint64_t number = 1; number <= 10000; ++number) {
    const bool here = board.board().is_picked(3, 77, number);
    EXPECT_EQ(here, board.board().is_picked(3, 77, number));
    picked += here;
    both += here && other.is_picked(3, 77, number);
  }
  EXPECT_NEAR(picked, 1000, 100);
  EXPECT_NEAR(both, 100, 50);
  board.spec.share = 0;
  EXPECT_FALSE(board.board().is_picked(3, 77, 1));
  board.spec.share = 1;
  EXPECT_TRUE(board.board().is_picked(3, 77, 1));
}

TEST(Audits, HaveExactlyTheSegmentsReceipts) {
  Board board;
  board.segment(board.commit(1));
  board.receipts_of(1);
  board.receipts_of(2);  // they come before the commitment to the second segment's begin does
  EXPECT_TRUE(board.state.open.empty());
  board.segment(board.commit(2));
  ASSERT_EQ(board.state.open.size(), 1u);
  const core::AuditTask& task = board.state.open.begin()->second.task;
  EXPECT_EQ(task.miner, Board::kMiner);
  EXPECT_EQ(task.stage, 2u);
  EXPECT_EQ(task.begin.number, 1u);
  EXPECT_EQ(task.end.number, 2u);
  EXPECT_EQ(task.base, digest_of("base"));
  ASSERT_EQ(task.receipts.size(), 2u);
  EXPECT_EQ(task.receipts[0].sequence, 1u);
  EXPECT_EQ(task.receipts[1].sequence, 2u);
  board.segment(board.commit(3));
  EXPECT_EQ(board.state.open.rbegin()->second.task.receipts.front().sequence, 3u);
}

TEST(Audits, ReceiptsOfSegmentsThatAreNotPickedAreNotKept) {
  Board board(0);
  board.through(5);
  EXPECT_TRUE(board.state.open.empty());
  EXPECT_TRUE(board.state.under_way.at(Board::kMiner).receipts.empty());
  EXPECT_EQ(board.state.segments, 4u);
}

TEST(Audits, WhatCannotBeRunAgainIsCountedAndSaid) {
  const auto after = [](auto change) {
    Board board;
    board.segment(board.commit(1));
    board.receipts_of(1);
    SegmentCommit end = board.commit(2);
    change(board, end);
    board.segment(end);
    EXPECT_TRUE(board.state.open.empty());
    EXPECT_EQ(board.state.unauditable, 1u);
    return board.notes.empty() ? "" : board.notes.back().text;
  };
  EXPECT_THAT(after([](Board&, SegmentCommit& end) { end.state = {}; }), HasSubstr("was not stored"));
  EXPECT_THAT(after([](Board&, SegmentCommit& end) { end.whole = false; }), HasSubstr("whole"));
  EXPECT_THAT(after([](Board& board, SegmentCommit&) { board.state.under_way.at(Board::kMiner).receipts.pop_back(); }),
              HasSubstr("receipts"));
}

TEST(Audits, CommitmentsAreTakenInOrderAndAfterTheirReceipts) {
  Board board;
  EXPECT_TRUE(board.board().is_news(Board::kMiner, board.commit(1), 0));
  EXPECT_FALSE(board.board().is_news(Board::kMiner, board.commit(2), 10));
  board.segment(board.commit(1));
  EXPECT_EQ(board.board().known_segment(Board::kMiner), 1u);
  EXPECT_FALSE(board.board().is_news(Board::kMiner, board.commit(1), 10));
  EXPECT_FALSE(board.board().is_news(Board::kMiner, board.commit(2), 1));
  EXPECT_TRUE(board.board().is_news(Board::kMiner, board.commit(2), 2));
  EXPECT_FALSE(board.board().is_news(99, board.commit(1), 0));  // nobody
}

TEST(Audits, AnUploadBelongsToTheSegmentOfItsSnapshot) {
  core::UploadCommit upload;
  upload.target = 1;
  upload.snapshot_step = 1;
  upload.snapshot_version = 1;
  Board early;
  early.segment(early.commit(1));
  early.receipts_of(1);
  early.board().upload(Board::kMiner, upload, digest_of("its base"));
  early.segment(early.commit(2));
  EXPECT_TRUE(early.state.open.begin()->second.task.upload);
  EXPECT_EQ(early.state.open.begin()->second.task.upload_base, digest_of("its base"));
  Board late;  // it arrives when the segment is over
  late.through(2);
  ASSERT_FALSE(late.state.open.begin()->second.task.upload);
  late.board().upload(Board::kMiner, upload, {});
  EXPECT_TRUE(late.state.open.begin()->second.task.upload);
  Board other;  // its snapshot was taken later
  upload.snapshot_step = 7;
  upload.snapshot_version = 7;
  other.through(2);
  other.board().upload(Board::kMiner, upload, {});
  EXPECT_FALSE(other.state.open.begin()->second.task.upload);
}

// What a miner carries over a merge may be enough for the next one at once: that upload's snapshot is at the step that the
// segment before the merge ended at, and may be known before that segment's end is.
TEST(Uploads, RightAfterAMergeBelongToTheNextSegment) {
  const core::UploadCommit first{.target = 1, .object = {}, .snapshot_step = 2, .snapshot_version = 3};
  const core::UploadCommit second{.target = 2, .object = {}, .snapshot_step = 2, .snapshot_version = 4};
  for (const bool picked : {false, true}) {
    Board board(picked ? 1 : 0);
    board.spec.upload_share = picked ? 0 : 1;
    const auto commit = [&](uint64_t number) {  // with a merge between segments 2 and 3
      core::SegmentCommit made = board.commit(number);
      if (number > 2) {
        made.epoch++;
        made.weight_version++;
      }
      return made;
    };
    board.segment(commit(1));
    board.receipts_of(1, 0, true);
    board.segment(commit(2));
    board.receipts_of(2, 0, true);
    board.board().upload(Board::kMiner, first, digest_of("first base"));
    board.board().upload(Board::kMiner, second, digest_of("second base"));
    board.segment(commit(3));
    board.receipts_of(3, 1, true);
    board.segment(commit(4));
    std::map<uint64_t, Epoch> targets;  // of the audits' segments
    for (const auto& [number, audit] : board.state.open) {
      if (audit.task.upload) targets[audit.task.begin.number] = audit.task.upload->target;
    }
    EXPECT_EQ(targets, (std::map<uint64_t, Epoch>{{2, 1}, {3, 2}})) << picked;
  }
}

// Versions and steps begin anew with every process.
TEST(Uploads, OfANewProcessDoNotBelongToTheOldOnesSegments) {
  Board board;
  board.through(2);
  ASSERT_EQ(board.state.open.size(), 1u);
  board.board().begin(Board::kMiner, 78, 2, "cpu");
  board.board().upload(Board::kMiner, {.target = 1, .object = {}, .snapshot_step = 1, .snapshot_version = 1}, {});
  EXPECT_FALSE(board.state.open.begin()->second.task.upload);
}

// The upload that counts is the one of the last try.
TEST(Uploads, MadeAnewAfterAnAbortedMergeAreAuditedAnew) {
  Board board(0);
  board.spec.upload_share = 1;
  for (const uint64_t number : {1, 2}) {
    board.segment(board.commit(number));
    board.receipts_of(number, 0, true);
  }
  core::UploadCommit upload{.target = 1, .object = digest_of("first"), .snapshot_step = 1, .snapshot_version = 2};
  board.board().upload(Board::kMiner, upload, {});
  board.segment(board.commit(3));
  board.receipts_of(3, 0, true);
  upload.object = digest_of("second");
  upload.snapshot_step = 3;
  upload.snapshot_version = 4;
  board.board().upload(Board::kMiner, upload, {});
  board.segment(board.commit(4));
  std::map<uint64_t, Digest> objects;  // of the audits' segments
  for (const auto& [number, audit] : board.state.open) {
    if (audit.task.upload) objects[audit.task.begin.number] = audit.task.upload->object;
  }
  EXPECT_EQ(objects, (std::map<uint64_t, Digest>{{1, digest_of("first")}, {3, digest_of("second")}}));
}

// A picked upload's segment is audited whether or not the segment is picked, once.
TEST(Uploads, ArePickedByTheirOwnDraw) {
  core::UploadCommit upload;
  upload.target = 1;
  upload.snapshot_step = 2;
  upload.snapshot_version = 3;  // as segment 2 ends
  for (const bool arrives_late : {false, true}) {
    Board board(0);
    board.spec.upload_share = 1;
    board.segment(board.commit(1));
    board.receipts_of(1, 0, true);
    board.segment(board.commit(2));
    board.receipts_of(2, 0, true);
    if (arrives_late) {
      board.segment(board.commit(3));
      board.receipts_of(3, 0, true);
    }
    board.board().upload(Board::kMiner, upload, digest_of("its base"));
    board.board().upload(Board::kMiner, upload, digest_of("its base"));  // of an aborted merge, once more
    if (!arrives_late) board.segment(board.commit(3));
    ASSERT_EQ(board.state.open.size(), 1u) << arrives_late;
    const core::AuditTask& task = board.state.open.begin()->second.task;
    EXPECT_EQ(task.begin.number, 2u);
    ASSERT_TRUE(task.upload);
    EXPECT_EQ(task.upload_base, digest_of("its base"));
    EXPECT_EQ(board.state.uploads_picked, 1u);
    EXPECT_EQ(board.state.picked, 0u);
  }
}

TEST(Uploads, AreAShareThatOnlyTheSecretDecides) {
  Board board;
  board.spec.upload_share = 0.8;
  int picked = 0;
  for (Epoch target = 1; target <= 10000; ++target) picked += board.board().is_upload_picked(3, 77, target);
  EXPECT_NEAR(picked, 8000, 150);
}

TEST(Uploads, OfSegmentsWhoseReceiptsWereNotKeptAreNotJudged) {
  Board board(0);
  board.spec.upload_share = 1;
  board.segment(board.commit(1));
  board.receipts_of(1, 0, false);  // nobody thought of a merge yet
  board.segment(board.commit(2));
  board.board().upload(Board::kMiner, {.target = 1, .object = {}, .snapshot_step = 0, .snapshot_version = 1}, {});
  EXPECT_TRUE(board.state.open.empty());
  EXPECT_EQ(board.state.unauditable, 0u);
}

TEST(Retention, CountsEpochs) {
  Board board;
  board.spec.retention_epochs = 2;
  EXPECT_EQ(core::payloads_kept_since(board.state, board.spec), 0);
  board.board().note_epoch(10, 0, 0);
  board.board().note_epoch(20, 1, 0);
  EXPECT_EQ(core::payloads_kept_since(board.state, board.spec), 0);
  for (const TimeMs now : {30, 50}) board.board().note_epoch(now, 0, static_cast<Epoch>(now / 20));
  for (const TimeMs now : {40, 60}) board.board().note_epoch(now, 1, static_cast<Epoch>(now / 20));
  EXPECT_EQ(core::payloads_kept_since(board.state, board.spec), 30);
}

// ---- the orchestrator: what its miners are told does not depend on audits -------------------------------------------

std::string bytes_of(const core::SyncAnswer& answer) {
  Encoder encoder;
  encoder.write(answer.phase);
  encoder.write(answer.reason);
  encoder.write(answer.known);
  encoder.write(answer.receipts_acknowledged);
  encoder.write(answer.lease_request);
  encoder.write(answer.leases);
  encoder.write(answer.peers_version);
  encoder.write(answer.peers);
  encoder.write(answer.assignment);
  encoder.write(answer.merge.has_value());
  encoder.write(answer.publish_state);
  encoder.write(answer.checkpoint);
  encoder.write(answer.leave);
  encoder.write(answer.drain);
  encoder.write(answer.spec_version);
  encoder.write(answer.segment_known);
  return encoder.take();
}

// One miner that trains and commits; with a validator that takes audits and fails every one of them, or without.
struct AuditedRun {
  std::vector<std::string> answers;
  uint64_t failed = 0;
  std::vector<uint64_t> unsealed;  // audits
};
AuditedRun answers_of_a_run(bool audited) {
  core::RunSpec spec = small_spec(1, 1);
  spec.audit.enabled = true;
  spec.audit.share = 1;
  spec.merge.enabled = false;
  core::Orchestrator orchestrator;
  core::RunCreated created;
  created.run_id = "0123456789abcdef";
  created.run_spec = encode(spec);
  created.data_plan = encode(small_data());
  created.secret = 99;
  created.stage_values = {core::stage_value_count(spec, 0)};
  TimeMs now = 1;
  AuditedRun run;
  const auto step = [&](core::Event event) {
    for (const core::Event& published : orchestrator.step(now, event).publish) {
      const auto* unsealed = std::get_if<core::SecretUnsealed>(&published);
      if (unsealed && unsealed->kind == core::AuditLeased::kName) run.unsealed.push_back(unsealed->id);
    }
  };
  step(created);
  core::MinerRegistered registered;
  registered.registration.node = node_of(1);
  registered.registration.incarnation = 7;
  registered.registration.address = "miner:1";
  step(registered);
  core::SyncRequest request;
  request.miner = 0;
  request.incarnation = 7;
  request.status.phase = core::MinerPhase::kReady;
  request.applied = core::MergeApplied{.epoch = 0, .state = digest_of("seed"), .version_after = 1, .local_step = 0};
  uint64_t sequence = 0, segment = 0;
  for (uint64_t round = 0; round < 10; ++round) {
    ++now;
    request.lease_request = round + 1;
    request.leases_wanted = 2;
    // Repeated until it is known, as miners do.
    if (!request.segment) {
      SegmentCommit& commit = request.segment.emplace();
      commit.number = ++segment;
      commit.first_receipt = sequence + 1;
      commit.local_step = round;
      commit.weight_version = round + 1;
      commit.state = digest_of("state " + std::to_string(round));
      if (segment > 1) commit.steps.push_back({0.1, 2, false});
    }
    for (core::Event& event : orchestrator.news_in(request)) step(std::move(event));
    if (auto leases = orchestrator.lease_request_in(request)) step(std::move(*leases));
    const core::SyncAnswer answer = orchestrator.answer_for(request);
    run.answers.push_back(bytes_of(answer));
    if (answer.segment_known == segment) request.segment.reset();
    request.receipts.clear();
    for (const core::Lease& lease : answer.leases) {
      core::Receipt receipt;
      receipt.sequence = ++sequence;
      receipt.miner = 0;
      receipt.microbatch = lease.microbatch;
      receipt.accumulated = true;
      receipt.local_step = round;
      request.receipts.push_back(receipt);
    }
    if (!audited) continue;
    core::ValidatorReport report;
    report.incarnation = 5;
    const NodeId validator = node_of(50);
    for (core::Event& event : orchestrator.news_in(validator, report)) step(std::move(event));
    if (auto lease = orchestrator.audit_request_in(validator, report)) step(std::move(*lease));
    const core::ValidatorOrders orders = orchestrator.orders_for(validator, report);
    if (!orders.task) continue;
    AuditResult result;
    result.audit = orders.task->audit;
    result.finding = AuditFinding::kActivation;
    result.reason = "noise";
    report.results.push_back(result);
    for (core::Event& event : orchestrator.news_in(validator, report)) step(std::move(event));
  }
  run.failed = orchestrator.state().audits.failed;
  return run;
}

TEST(Secrecy, AMinerIsToldTheSameWithAndWithoutAudits) {
  const AuditedRun audited = answers_of_a_run(true), other = answers_of_a_run(false);
  EXPECT_EQ(audited.answers, other.answers);
  EXPECT_GE(audited.failed, 5u);  // the audits did take place
  EXPECT_EQ(other.failed, 0u);
  // Who had which audit is secret until its verdict.
  EXPECT_EQ(audited.unsealed.size(), audited.failed);
  core::AuditLeased leased;
  leased.audit = 3;
  EXPECT_EQ(core::seal_id(core::Event(leased)), 3u);
}

}  // namespace
}  // namespace tessera::test
