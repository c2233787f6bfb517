// An audit board and one miner that commits to its segments.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "support/small_run.h"
#include "tessera/core/audit_board.h"

namespace tessera::test {

// A board, its state, and a miner that commits to one segment after the other.
struct Board {
  explicit Board(double share = 1) {
    spec.enabled = true;
    spec.share = share;
    spec.upload_share = 0;
    spec.lease_ms = 1000;
    board().begin(kMiner, 77, 2, "cpu");
  }
  core::AuditBoard board() { return core::AuditBoard(state, spec, 4711); }
  // Two receipts and one step a segment.
  core::SegmentCommit commit(uint64_t number) const {
    core::SegmentCommit made;
    made.number = number;
    made.local_step = number - 1;
    made.weight_version = number;
    made.first_receipt = 2 * number - 1;
    made.state = digest_of("state " + std::to_string(number));
    if (number > 1) made.steps.push_back({0.1, 2, false});
    return made;
  }
  void receipts_of(uint64_t number, Epoch epoch = 0, bool may_snapshot = false) {
    for (uint64_t sequence = 2 * number - 1; sequence <= 2 * number; ++sequence) {
      core::Receipt receipt;
      receipt.sequence = sequence;
      receipt.miner = kMiner;
      board().receipt(kMiner, receipt, epoch, may_snapshot);
    }
  }
  void segment(core::SegmentCommit made) { board().segment(kMiner, made, digest_of("base"), &notes); }
  void through(uint64_t last) {
    for (uint64_t number = 1; number <= last; ++number) {
      segment(commit(number));
      receipts_of(number);
    }
  }
  void join(uint64_t validator) { board().join({node_of(validator), validator, "cpu", "test"}); }
  std::optional<uint64_t> lease_to(uint64_t validator, TimeMs now = 0) {
    const auto audit = board().audit_for(node_of(validator));
    if (audit) board().lease(now, {*audit, node_of(validator)});
    return audit;
  }
  core::AuditResult result(uint64_t audit, core::AuditFinding finding = core::AuditFinding::kNone) const {
    core::AuditResult made;
    made.audit = audit;
    made.finding = finding;
    made.reason = "because";
    return made;
  }

  static constexpr MinerIndex kMiner = 5;
  core::AuditSpec spec;
  core::AuditState state;
  std::vector<core::AuditNote> notes;
};

}  // namespace tessera::test
