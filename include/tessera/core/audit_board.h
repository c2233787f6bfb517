// Which segments are audited, by whom, and what came of it: the orchestrator's part that no miner sees. Pure; its state is a
// part of the orchestrator's.
//
// Segment n of an incarnation is picked if a hash of the run's secret, the miner, its incarnation and n falls into
// audit.share. So the decision is made before the work is done, nobody without the secret can know it, nothing that a miner
// is told or asked depends on it, and only the receipts of picked segments are kept.
//
// An upload for a merge is picked in the same way, with audit.upload_share, by the epoch that it leads to: the segment that its
// snapshot was taken in is audited then. Receipts for that are kept when a miner is about to be asked for one.
//
// A picked segment becomes an audit when the commitment to its end is known. Audits go to validators in order, one each, for
// audit.lease_ms; one whose validator is gone or late goes to another, at most kMostAttempts times.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/clock.h"
#include "tessera/core/audit_events.h"
#include "tessera/core/verdict.h"

namespace tessera::core {

inline constexpr size_t kMostOpenAudits = 256;
inline constexpr uint32_t kMostAttempts = 3;
inline constexpr size_t kMostValidators = 1024;
inline constexpr size_t kMostAwaitUpload = 4;      // ended segments of a miner, until it is known whether its snapshot is in one
inline constexpr uint64_t kJudgedReceipts = 1024;  // of a miner, before the share of them that can be audited says anything
inline constexpr uint32_t kJudgedSegments = 8;     // and segments

// From this receipt on the ledger knew the miner in this epoch of its stage.
struct EpochMark {
  uint64_t first_receipt = 0;
  Epoch epoch = 0;
  template <class A>
  void fields(A& a) {
    a("first_receipt", first_receipt)("epoch", epoch);
  }
};

// A segment that has ended, as an audit of it would be.
struct EndedSegment {
  AuditTask task;
  std::vector<Epoch> epochs;
  template <class A>
  void fields(A& a) {
    a("task", task)("epochs", epochs);
  }
};

// An upload that is whole, and the state that it is the change of.
struct UploadMade {
  UploadCommit commit;
  Digest base;
  bool audited = false;  // there is or was an audit with it
  template <class A>
  void fields(A& a) {
    a("commit", commit)("base", base)("audited", audited);
  }
};

// What is known of the segment that a miner works on.
struct SegmentUnderWay {
  uint64_t incarnation = 0;
  StageIndex stage = 0;
  std::string device;
  std::optional<SegmentCommit> begin;      // nothing before the incarnation's first
  std::vector<Receipt> receipts;           // kept while this segment, the next, or the upload to come is picked
  uint64_t receipts_since = 0;             // the commitment to its begin, kept or not
  std::vector<EpochMark> epochs;           // of the receipts since then, and the mark before
  bool schedule_known = true;
  std::vector<UploadMade> uploads;         // of at most two epochs, the newest last: it may come before the older one's segment ends
  std::vector<EndedSegment> ended;         // at most kMostAwaitUpload, the newest last
  Digest base;                             // the stage's state that begin.epoch began with
  uint64_t auditable = 0;                  // receipts of segments that can be run again, since that was last judged
  uint64_t not_auditable = 0;
  uint32_t segments = 0;
  template <class A>
  void fields(A& a) {
    a("incarnation", incarnation)("stage", stage)("device", device)("begin", begin)("receipts", receipts)(
        "receipts_since", receipts_since)("epochs", epochs)("schedule_known", schedule_known)("uploads", uploads)("ended", ended)("base", base)(
        "auditable", auditable)("not_auditable", not_auditable)("segments", segments);
  }
};

struct OpenAudit {
  AuditTask task;
  uint64_t incarnation = 0;                // of the process whose work it is
  std::vector<Epoch> epochs;               // that the ledger knew the miner in when its receipts came; a verdict is on these
  std::optional<NodeId> validator;         // that has it in hand
  std::optional<NodeId> last_validator;    // that had it and gave no result
  TimeMs deadline = 0;
  uint32_t attempts = 0;
  template <class A>
  void fields(A& a) {
    a("task", task)("incarnation", incarnation)("epochs", epochs)("validator", validator)("last_validator", last_validator)("deadline", deadline)("attempts", attempts);
  }
};

struct ValidatorRecord {
  uint64_t incarnation = 0;
  std::string device;
  std::string software;
  bool live = false;
  uint64_t finished = 0;
  template <class A>
  void fields(A& a) {
    a("incarnation", incarnation)("device", device)("software", software)("live", live)("finished", finished);
  }
};

struct EpochBegin {
  Epoch epoch = 0;
  TimeMs at = 0;
  template <class A>
  void fields(A& a) {
    a("epoch", epoch)("at", at);
  }
};

struct AuditState {
  std::map<StageIndex, std::vector<EpochBegin>> epochs;  // the last audit.retention_epochs that a miner has begun
  std::map<MinerIndex, SegmentUnderWay> under_way;
  std::map<uint64_t, OpenAudit> open;
  std::map<NodeId, ValidatorRecord> validators;
  uint64_t next_audit = 1;
  uint64_t segments = 0;       // that ended
  uint64_t picked = 0;
  uint64_t uploads_picked = 0; // whose segment was found
  uint64_t unauditable = 0;    // picked, but the miner's state was not stored, or the log has holes
  uint64_t no_room = 0;        // picked, but too many audits waited
  uint64_t passed = 0;
  uint64_t failed = 0;
  uint64_t unreadable = 0;     // a validator could not judge
  uint64_t given_up = 0;       // no validator brought a result
  template <class A>
  void fields(A& a) {
    a("epochs", epochs)("under_way", under_way)("open", open)("validators", validators)("next_audit", next_audit)("segments", segments)(
        "picked", picked)("uploads_picked", uploads_picked)("unauditable", unauditable)("no_room", no_room)("passed", passed)("failed", failed)(
        "unreadable", unreadable)("given_up", given_up);
  }
};

// Payloads and states from then on stay in the blob store; 0: all.
TimeMs payloads_kept_since(const AuditState& state, const AuditSpec& spec);

// One decision of the board. `text` is for the log; empty: nothing worth a line.
struct AuditNote {
  std::string text;
  bool warning = false;
  uint64_t over = 0;  // the audit that this ends: who had it is secret no longer; 0: none
};

class AuditBoard {
 public:
  // Changes `state` only. `secret`: the run's.
  AuditBoard(AuditState& state, const AuditSpec& spec, uint64_t secret) : state_(state), spec_(spec), secret_(secret) {}

  // A process of this miner begins to work on a stage.
  void begin(MinerIndex miner, uint64_t incarnation, StageIndex stage, const std::string& device);
  // `epoch`: that the ledger knows the miner in. `may_snapshot`: it may be asked for an upload before long.
  void receipt(MinerIndex miner, const Receipt& receipt, Epoch epoch, bool may_snapshot);
  // An upload of which every block is stored, once or again. `base`: the state that it is the change of.
  void upload(MinerIndex miner, const UploadCommit& commit, const Digest& base);
  void schedule_changed();
  // `base`: the state that the stage had when commit.epoch began; zero if there was none. The commitment's epoch is the miner's
  // word; verdicts are on the epochs that receipt() was told.
  void segment(MinerIndex miner, const SegmentCommit& commit, const Digest& base, std::vector<AuditNote>* notes);
  void note_epoch(TimeMs now, StageIndex stage, Epoch epoch);
  void join(const ValidatorJoined& event);
  void lose(const ValidatorLost& event, std::vector<AuditNote>* notes);
  void lease(TimeMs now, const AuditLeased& event);
  void finish(const AuditFinished& event, std::vector<AuditNote>* notes);
  void expire(TimeMs now, std::vector<AuditNote>* notes);
  // Asked after receipts and commitments: a failed verdict if too little of what this miner did lately can be audited. That begins
  // anew after every kJudgedReceipts.
  std::optional<Verdict> judge_auditable(MinerIndex miner, Epoch epoch);

  // Questions.
  bool is_news(MinerIndex miner, const SegmentCommit& commit, uint64_t receipts_through) const;
  uint64_t known_segment(MinerIndex miner) const;
  bool is_picked(MinerIndex miner, uint64_t incarnation, uint64_t number) const;
  bool is_upload_picked(MinerIndex miner, uint64_t incarnation, Epoch target) const;
  std::optional<uint64_t> audit_for(const NodeId& validator) const;
  bool is_awaited(const NodeId& validator, const AuditResult& result) const;
  // Of an awaited one: one for each epoch that it is about if it failed, else one.
  std::vector<Verdict> verdicts_of(const AuditResult& result) const;
  TimeMs next_deadline() const;  // 0: none

 private:
  double drawn(const char* what, MinerIndex miner, uint64_t incarnation, uint64_t number) const;
  void end_segment(MinerIndex miner, SegmentUnderWay& segment, const SegmentCommit& end, const Digest& next_base,
                   std::vector<AuditNote>* notes);
  bool audit_upload(const SegmentUnderWay& segment, const EndedSegment& ended, UploadMade& upload);
  bool open_audit(const SegmentUnderWay& segment, EndedSegment ended);
  void take_back(uint64_t audit, const std::string& why, std::vector<AuditNote>* notes);

  AuditState& state_;
  const AuditSpec& spec_;
  const uint64_t secret_;
};

}  // namespace tessera::core
