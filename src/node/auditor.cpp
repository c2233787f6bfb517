#include "tessera/node/auditor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "audit_judge.h"
#include "tessera/base/log.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/audit_store.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

using core::AuditFinding;

constexpr double kScheduleTolerance = 1e-9;
// An upload is off by what its own rounding leaves out and by what earlier ones left out and it made up for. Both together,
// against the rounding alone.
constexpr double kErrorFeedback = 2;

// A CPU and a GPU round differently, and what that makes of a small gradient depends on the weights: up to 0.14 of it was seen
// (docs/audits.md). So a tensor's limits are this much wider where the validator's kind of device is not the miner's.
constexpr double kAcrossKinds = 15;

double squared_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

core::RunSpec with_limits_for(core::RunSpec spec, const std::string& miner_device, const std::string& own_device) {
  if (core::device_kind(miner_device) == core::device_kind(own_device)) return spec;
  core::AuditSpec& audit = spec.audit;
  audit.exact = false;
  audit.relative_error = std::min(1.0, kAcrossKinds * audit.relative_error);
  audit.norm_deviation = std::min(1.0, kAcrossKinds * audit.norm_deviation);
  // 1 - cosine grows with the square of the error.
  audit.cosine = std::max(0.0, 1 - kAcrossKinds * kAcrossKinds * (1 - audit.cosine));
  return spec;
}

}  // namespace

// Every step returns OK to go on; what ends the audit is in fault_, or is an error that says why there can be no verdict.
class Auditor::Case final : public ReplayInputs {
 public:
  Case(const Auditor& auditor, const core::AuditTask& task, const std::atomic<bool>& cancelled)
      : auditor_(auditor),
        spec_(with_limits_for(auditor.spec_, task.device, auditor.options_.device)),
        task_(task),
        cancelled_(cancelled),
        judge_(spec_, [this](const Digest& name) { return payload(name); }) {}

  core::AuditResult run() {
    const Status status = examine();
    core::AuditResult result;
    result.audit = task_.audit;
    result.judged = judge_.judged();
    result.repaired = repaired_;
    if (fault_) {
      result.finding = fault_->finding;
      result.reason = fault_->reason;
    } else if (!status.ok()) {
      result.finding = AuditFinding::kUnreadable;
      result.reason = message_of(status);
    } else {
      result.reason = fmt::format("{} microbatches and {} steps are as they should be", result.judged, task_.end.steps.size());
    }
    result.reason.resize(std::min<size_t>(result.reason.size(), 1024));
    result.evidence = write_evidence(result);
    return result;
  }

  StatusOr<std::vector<uint32_t>> tokens(MicrobatchId microbatch) override {
    std::vector<uint32_t> all;
    for (const core::Window& window : core::windows_of(auditor_.data_.train, spec_.model.context, spec_.training.seed, microbatch,
                                                       spec_.training.microbatch_size)) {
      auto part = auditor_.tokens_.read(auditor_.data_.train[window.shard], window.first_token, spec_.model.context + 1);
      if (!part.ok()) return unreadable(part.status(), "the training data");
      all.insert(all.end(), part->begin(), part->end());
    }
    return all;
  }

  // It had to store what it received and what it sent, or say that it could not.
  StatusOr<core::BoundaryPayload> payload(const Digest& name) override {
    const size_t bytes = payload_bytes(spec_.boundary.codec, spec_.tokens_per_microbatch(), static_cast<size_t>(core::boundary_width(spec_)));
    auto found = get_payload(auditor_.blobs_, name, bytes);
    if (found.ok()) return found;
    const auto& dropped = task_.end.dropped;
    if (std::find(dropped.begin(), dropped.end(), name) != dropped.end()) {
      return unreadable(found.status(), "a payload that the miner could not store");
    }
    if (absl::IsNotFound(found.status())) return blame(AuditFinding::kMissing, fmt::format("payload {} of a receipt was never stored", name.brief()));
    return unreadable(found.status(), "a payload");
  }

 private:
  Status blame(AuditFinding finding, std::string reason) {
    if (!fault_) fault_ = AuditFault{finding, std::move(reason)};
    return failed_precondition("{}", fault_->reason);
  }
  // Never mistaken for what a miner is to blame for.
  static Status unreadable(const Status& status, const char* what) {
    return unavailable("{} can't be had: {}", what, message_of(status));
  }

  Status examine() {
    TESSERA_RETURN_IF_ERROR(check_log());
    TESSERA_ASSIGN_OR_RETURN(const Segment segment, fetch_segment());
    TESSERA_ASSIGN_OR_RETURN(const auto engine, auditor_.options_.make_engine(spec_, task_.stage, core::box_shape(task_.device)));
    std::set<uint64_t> versions;
    if (task_.upload) versions.insert(task_.upload->snapshot_version);
    const auto replayed = replay_segment(*engine, segment, *this, versions,
                                         [&](const ReplayedMicrobatch& microbatch) { return judge(microbatch); },
                                         core::merge_planes(spec_.merge) > 1);
    if (!replayed.ok()) {
      if (fault_) return ok_status();
      // What the engine and the replay refuse is the log's fault: inputs were found, and are what receipts name.
      const bool refused = absl::IsInvalidArgument(replayed.status()) || absl::IsDataLoss(replayed.status());
      return refused ? blame(AuditFinding::kLog, message_of(replayed.status())) : replayed.status();
    }
    TESSERA_RETURN_IF_ERROR(check_upload(segment.start.masters, *replayed));
    return check_end(segment.start.masters, *replayed);
  }

  Status judge(const ReplayedMicrobatch& microbatch) {
    if (cancelled_) return unavailable("the validator stops");
    const core::Receipt& receipt = task_.receipts[microbatch.receipt];
    // Who says that its work was repaired is judged like anybody else: a receipt names what this miner itself got and made of it,
    // whoever had the microbatch before or after.
    repaired_ += receipt.repaired;
    TESSERA_ASSIGN_OR_RETURN(const auto fault, judge_.microbatch(receipt, microbatch));
    return fault ? blame(fault->finding, fault->reason) : ok_status();
  }

  // What needs no computing.
  Status check_log() {
    const core::SegmentCommit &begin = task_.begin, &end = task_.end;
    if (end.local_step != begin.local_step + end.steps.size()) {
      return blame(AuditFinding::kLog, fmt::format("it began at local step {} and ended at {}, with {} steps between", begin.local_step,
                                                   end.local_step, end.steps.size()));
    }
    if (end.schedule_step != begin.schedule_step + end.steps.size()) {
      return blame(AuditFinding::kLog, fmt::format("the schedule went from {} to {} in {} steps", begin.schedule_step, end.schedule_step,
                                                   end.steps.size()));
    }
    for (size_t i = 0; task_.schedule_known && i < end.steps.size(); ++i) {
      const double due = core::learning_rate_at(spec_.training, begin.schedule_step + i);
      if (std::abs(end.steps[i].learning_rate - due) > kScheduleTolerance * due) {
        return blame(AuditFinding::kLog, fmt::format("local step {} was taken with learning rate {:g}, due is {:g}", begin.local_step + i,
                                                     end.steps[i].learning_rate, due));
      }
    }
    return ok_status();
  }

  // An object that the miner said it had stored.
  StatusOr<std::string> committed(const Digest& object, uint64_t bytes) {
    auto found = get_object(auditor_.blobs_, object, bytes);
    if (absl::IsNotFound(found.status())) return blame(AuditFinding::kMissing, fmt::format("the state {} that it committed to was never stored", object.brief()));
    if (absl::IsDataLoss(found.status())) return blame(AuditFinding::kLog, fmt::format("the state {} that it committed to: {}", object.brief(), message_of(found.status())));
    if (!found.ok()) return unreadable(found.status(), "a committed state");
    return found;
  }

  StatusOr<core::LocalState> committed_state(const Digest& object) {
    TESSERA_ASSIGN_OR_RETURN(const std::string bytes, committed(object, 0));
    StatusOr<core::LocalState> state = decode_local_state(bytes);
    if (!state.ok() || state->masters.size() != core::stage_value_count(spec_, task_.stage)) {
      return blame(AuditFinding::kLog, fmt::format("what it committed to as {} is no state of stage {}", object.brief(), task_.stage));
    }
    return state;
  }

  StatusOr<Segment> fetch_segment() {
    Segment segment;
    const uint64_t values = core::stage_value_count(spec_, task_.stage);
    TESSERA_ASSIGN_OR_RETURN(segment.start, committed_state(task_.begin.state));
    for (const core::OlderWeights& older : task_.begin.older) {
      TESSERA_ASSIGN_OR_RETURN(const std::string bytes, committed(older.object, values * sizeof(float)));
      segment.older.push_back({older.version, values_of(bytes)});
    }
    segment.weight_version = task_.begin.weight_version;
    segment.local_step = task_.begin.local_step;
    segment.receipts = task_.receipts;
    segment.steps = task_.end.steps;
    return segment;
  }

  // Base or outer momentum of a stage's state, if it is still there.
  std::optional<std::vector<float>> base_of(const Digest& state) const {
    const uint64_t values = core::stage_value_count(spec_, task_.stage);
    if (state.is_zero()) return std::nullopt;
    const auto bytes = get_object(auditor_.blobs_, state, 2 * values * sizeof(float));
    if (!bytes.ok()) return std::nullopt;
    return values_of(std::string_view(*bytes).substr(0, values * sizeof(float)));
  }

  Status check_upload(const std::vector<float>& start, const ReplayedSegment& replayed) {
    if (!task_.upload) return ok_status();
    const auto snapshot = replayed.at_version.find(task_.upload->snapshot_version);
    const auto base = base_of(task_.upload_base);
    if (snapshot == replayed.at_version.end() || !base) {
      notes_["upload"] = "not judged: the epoch's base is not in the blob store any more";
      return ok_status();
    }
    const auto delta = fetch_upload(auditor_.blobs_, spec_.merge, start.size(), task_.upload->object);
    if (!delta.ok()) {
      notes_["upload"] = "not judged: " + message_of(delta.status());
      return ok_status();
    }
    // The masters that the upload stands for.
    std::vector<float> claimed = *base;
    for (size_t i = 0; i < claimed.size(); ++i) claimed[i] -= (*delta)[i];
    const double allowance = kErrorFeedback * upload_rounding(spec_.merge, difference(*base, snapshot->second));
    notes_["upload"] = "judged";
    const auto fault = judge_.delta(AuditFinding::kUpload, "the upload's delta", *base, snapshot->second, claimed, allowance);
    if (fault) return blame(fault->finding, fault->reason);
    const auto moments = replayed.moments_at.find(task_.upload->snapshot_version);
    return moments == replayed.moments_at.end() ? ok_status() : check_moments(moments->second, *delta);
  }

  // The gate does not look at them: an upload's planes of moments, where merges average those.
  Status check_moments(const core::Moments& replayed, const std::vector<float>& upload) {
    const uint64_t values = replayed.first.size();
    std::vector<float> roots(values);
    std::transform(replayed.second.begin(), replayed.second.end(), roots.begin(), [](float value) { return std::sqrt(value); });
    const std::vector<float> zeros(values, 0.0f);
    const bool other_kind = core::device_kind(task_.device) != core::device_kind(auditor_.options_.device);
    for (const uint64_t plane : {uint64_t{1}, uint64_t{2}}) {
      const std::vector<float>& expected = plane == 1 ? replayed.first : roots;
      const auto begin = upload.begin() + static_cast<std::ptrdiff_t>(core::plane_begin(spec_.merge, values, plane));
      // They are means of gradients, which two kinds of device round as differently as those at a boundary.
      const double allowance =
          std::hypot(upload_rounding(spec_.merge, expected), other_kind ? spec_.audit.relative_error : 0.0);
      const char* const what = plane == 1 ? "the upload's first moments" : "the upload's second moments";
      const auto fault = judge_.delta(AuditFinding::kUpload, what, zeros, expected,
                                      {begin, begin + static_cast<std::ptrdiff_t>(values)}, allowance);
      if (fault) return blame(fault->finding, fault->reason);
    }
    return ok_status();
  }

  // The next commitment must be where the segment led.
  Status check_end(const std::vector<float>& start, const ReplayedSegment& replayed) {
    TESSERA_ASSIGN_OR_RETURN(const core::LocalState end, committed_state(task_.end.state));
    if (task_.end.epoch == task_.begin.epoch) {
      const auto fault = judge_.delta(AuditFinding::kWeights, "the change of the weights", start, replayed.masters, end.masters);
      return fault ? blame(fault->finding, fault->reason) : ok_status();
    }
    return check_carry(replayed, end.masters);
  }

  // Across a merge: masters = next base + (masters before - reference), the reference being the snapshot if the upload was in
  // the manifest, else the old base; or the next base alone, if its work was dropped.
  Status check_carry(const ReplayedSegment& replayed, const std::vector<float>& masters) {
    const auto base = base_of(task_.base), next = base_of(task_.next_base);
    if (!base || !next || task_.end.epoch != task_.begin.epoch + 1) {
      notes_["carry"] = "not judged: the bases before and after the merge are not both in the blob store";
      return ok_status();
    }
    if (masters == *next) {
      // The merge tells a miner so whose work missed more than merge.max_staleness of them. Whoever does it unasked loses no
      // more than its own work.
      notes_["carry"] = "none: it went on from the merged weights";
      return ok_status();
    }
    std::vector<const std::vector<float>*> references = {&*base};
    if (task_.upload) {
      const auto snapshot = replayed.at_version.find(task_.upload->snapshot_version);
      if (snapshot != replayed.at_version.end()) references.push_back(&snapshot->second);
    }
    // Which of them it was, the merge decided: where it came nearest to.
    std::vector<float> expected;
    double nearest = HUGE_VAL;
    for (const std::vector<float>* reference : references) {
      std::vector<float> carried = *next;
      for (size_t i = 0; i < carried.size(); ++i) carried[i] += replayed.masters[i] - (*reference)[i];
      const double distance = squared_distance(carried, masters);
      if (!expected.empty() && !(distance < nearest)) continue;
      nearest = distance;
      expected = std::move(carried);
      notes_["carry"] = reference == &*base ? "judged from the base" : "judged from the snapshot";
    }
    const auto fault = judge_.delta(AuditFinding::kWeights, "what it carried over the merge", *next, expected, masters);
    if (!fault) return ok_status();
    if (!task_.upload) {
      // Its upload may have come from an earlier segment: then the snapshot is not known here.
      notes_["carry"] = "not judged: the snapshot was taken in another segment";
      return ok_status();
    }
    return blame(fault->finding, fault->reason);
  }

  Digest write_evidence(const core::AuditResult& result) {
    nlohmann::json evidence = judge_.evidence();
    evidence["audit"] = task_.audit;
    evidence["miner"] = task_.miner;
    evidence["stage"] = task_.stage;
    evidence["miner_device"] = task_.device;
    evidence["validator_device"] = auditor_.options_.device;
    evidence["epoch"] = task_.begin.epoch;
    evidence["segment"] = task_.begin.number;
    evidence["local_steps"] = {task_.begin.local_step, task_.end.local_step};
    evidence["begin_state"] = task_.begin.state.hex();
    evidence["end_state"] = task_.end.state.hex();
    evidence["receipts"] = {task_.begin.first_receipt, task_.end.first_receipt};
    evidence["repaired_microbatches"] = repaired_;
    evidence["finding"] = core::name_of(result.finding);
    evidence["reason"] = result.reason;
    evidence["notes"] = notes_;
    const auto put = auditor_.blobs_.put({evidence.dump(1)});
    if (put.ok()) return put->front();
    spdlog::warn("audit {}: the evidence could not be stored: {}", task_.audit, message_of(put.status()));
    return {};
  }

  const Auditor& auditor_;
  const core::RunSpec spec_;
  const core::AuditTask& task_;
  const std::atomic<bool>& cancelled_;
  AuditJudge judge_;
  uint32_t repaired_ = 0;
  std::optional<AuditFault> fault_;
  nlohmann::json notes_ = nlohmann::json::object();
};

core::AuditResult Auditor::audit(const core::AuditTask& task, const std::atomic<bool>& cancelled) {
  return Case(*this, task, cancelled).run();
}

}  // namespace tessera::node
