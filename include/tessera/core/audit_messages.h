// What audits are about, as plain values: the commitments of miners, the audits that validators are given, and what they
// find. docs/trust.md tells the whole story.
//
// A segment is a miner's work between two of its commitments: forwards, backwards and local steps in the order in which its
// receipts tell them, from a state that anyone can fetch. A merge ends a segment, because it changes the weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/core/messages.h"
#include "tessera/core/segment_commit.h"

namespace tessera::core {

// One audit, as a validator gets it: everything it has to fetch is named.
struct AuditTask {
  uint64_t audit = 0;
  MinerIndex miner = kNoMiner;
  StageIndex stage = 0;
  std::string device;                 // of the miner, as it registered
  SegmentCommit begin;
  SegmentCommit end;                  // the next commitment
  std::vector<Receipt> receipts;      // of the segment, in order
  bool schedule_known = true;         // false: an operator changed the learning rate meanwhile
  Digest base;                        // the stage's state that begin.epoch began with
  Digest next_base;                   // and that of end.epoch, if a merge lies between
  std::optional<UploadCommit> upload; // whole, and its snapshot was taken within the segment
  Digest upload_base;                 // the stage's state that the upload is the change of
  uint32_t lifetime_ms = 0;
  template <class A>
  void fields(A& a) {
    a("audit", audit)("miner", miner)("stage", stage)("device", device)("begin", begin)("end", end)(
        "receipts", receipts)("schedule_known", schedule_known)("base", base)("next_base", next_base)("upload", upload)(
        "upload_base", upload_base)("lifetime_ms", lifetime_ms);
  }
};

// "cuda" of "cuda:0", "cpu" of "cpu": on one kind honest engines agree to the bit or nearly, on two they round differently.
std::string device_kind(const std::string& device);

// A box of several devices as one miner: its workers share each microbatch and each step, so that its sums have an order of their
// own. What a miner says of its devices has the shape in it, for whoever computes its work again: "cuda:0 and 1 more, zero_stage 2".
// More than two workers add up in an order that their library chooses: they are a kind of device of their own ("cuda-box").
struct BoxShape {
  uint32_t workers = 1;
  uint32_t zero_stage = 0;
  friend bool operator==(const BoxShape&, const BoxShape&) = default;
};
std::string box_description(const std::string& first_device, const BoxShape& shape);
// One worker for whatever is no box's description.
BoxShape box_shape(const std::string& description);

enum class AuditFinding : uint8_t {
  kNone = 0,
  kActivation = 1,    // an output is not what the weights and the input give
  kGradient = 2,      // a boundary gradient is not
  kLoss = 3,          // the tail's loss is not
  kWeights = 4,       // the segment's work does not lead to the next commitment
  kUpload = 5,        // the upload is not what the segment's work led to
  kLog = 6,           // receipts and steps contradict each other or the schedule
  kMissing = 7,       // a payload that it had to store is not there, and it did not say so
  kUnreadable = 8,    // no verdict: something else could not be had
};
const char* name_of(AuditFinding finding);

struct AuditResult {
  uint64_t audit = 0;
  AuditFinding finding = AuditFinding::kNone;
  std::string reason;                 // figures and the microbatch, for people
  uint32_t judged = 0;                // microbatches
  uint32_t repaired = 0;              // of the segment, as their receipts say; judged like the others
  Digest evidence;                    // blob of JSON with every figure; zero: it could not be stored
  template <class A>
  void fields(A& a) {
    a("audit", audit)("finding", finding)("reason", reason)("judged", judged)("repaired", repaired)(
        "evidence", evidence);
  }
};

// ---- a validator's report and its answer ----------------------------------------------------------------------------

struct ValidatorReport {
  uint64_t incarnation = 0;           // random, new for every process
  std::string device;
  uint64_t memory_bytes = 0;
  std::string software;
  uint64_t working_on = 0;            // number of the audit it has in hand; 0: none
  bool wants_work = true;             // false: it is about to end
  std::vector<AuditResult> results;   // until the answer shows that they are known
  uint64_t spec_version = 0;          // of the specification it has; 0: none
  template <class A>
  void fields(A& a) {
    a("incarnation", incarnation)("device", device)("memory_bytes", memory_bytes)("software", software)(
        "working_on", working_on)("wants_work", wants_work)("results", results)("spec_version", spec_version);
  }
};

struct ValidatorOrders {
  std::string run_id;
  uint64_t spec_version = 0;
  std::optional<std::string> run_spec;   // encode(RunSpec), if the report named another version
  std::optional<std::string> data_plan;  // with it
  std::vector<uint64_t> results_known;
  std::optional<AuditTask> task;
  bool leave = false;                    // the run is over
  uint32_t report_ms = 0;                // how often to report
  template <class A>
  void fields(A& a) {
    a("run_id", run_id)("spec_version", spec_version)("run_spec", run_spec)("data_plan", data_plan)(
        "results_known", results_known)("task", task)("leave", leave)("report_ms", report_ms);
  }
};

inline constexpr size_t kMaxResultsPerReport = 16;

}  // namespace tessera::core
