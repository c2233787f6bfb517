// Events of audits (core/events.h has all kinds).
#pragma once

#include <string>

#include "tessera/core/audit_messages.h"

namespace tessera::core {

struct SegmentCommitted {
  static constexpr const char* kName = "segment_committed";
  MinerIndex miner = kNoMiner;
  SegmentCommit commit;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("commit", commit);
  }
};
// A validator's process is there: for the first time, again, or in the place of another with the same key.
struct ValidatorJoined {
  static constexpr const char* kName = "validator_joined";
  NodeId node;
  uint64_t incarnation = 0;
  std::string device;
  std::string software;
  template <class A>
  void fields(A& a) {
    a("node", node)("incarnation", incarnation)("device", device)("software", software);
  }
};
struct ValidatorLost {
  static constexpr const char* kName = "validator_lost";
  NodeId node;
  std::string reason;
  template <class A>
  void fields(A& a) {
    a("node", node)("reason", reason);
  }
};
// Who is audited is known before the verdict: sealed until the audit is over.
struct AuditLeased {
  static constexpr const char* kName = "audit_leased";
  static constexpr bool kSealed = true;
  uint64_t seal_id() const { return audit; }
  uint64_t audit = 0;
  NodeId validator;
  template <class A>
  void fields(A& a) {
    a("audit", audit)("validator", validator);
  }
};
struct AuditFinished {
  static constexpr const char* kName = "audit_finished";
  NodeId validator;
  AuditResult result;
  template <class A>
  void fields(A& a) {
    a("validator", validator)("result", result);
  }
};

}  // namespace tessera::core
