#include "tessera/core/audit_board.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tessera/base/crypto.h"

namespace tessera::core {
namespace {

constexpr double kTwoTo64 = 18446744073709551616.0;
constexpr size_t kMostUploads = 2;

// Whether the snapshot was taken in this segment. Steps and versions only grow within a process, and a merge, which ends a
// segment, makes a version of its own: a snapshot right after it is at the last step of this segment, but not in it.
bool holds(const AuditTask& task, const UploadCommit& upload) {
  const auto taken = std::count_if(task.end.steps.begin(), task.end.steps.end(), [](const StepRecord& step) { return !step.skipped; });
  const auto within = [](uint64_t value, uint64_t first, uint64_t count) { return value >= first && value - first <= count; };
  return within(upload.snapshot_version, task.begin.weight_version, static_cast<uint64_t>(taken)) &&
         within(upload.snapshot_step, task.begin.local_step, task.end.steps.size());
}

// The ledger's epochs of receipts first to last - 1.
std::vector<Epoch> epochs_of(const std::vector<EpochMark>& marks, uint64_t first, uint64_t last) {
  std::vector<Epoch> epochs;
  for (size_t i = 0; i < marks.size(); ++i) {
    const bool over = i + 1 < marks.size() && marks[i + 1].first_receipt <= first;
    if (over || marks[i].first_receipt >= last) continue;
    if (epochs.empty() || epochs.back() != marks[i].epoch) epochs.push_back(marks[i].epoch);
  }
  return epochs;
}

// Why the segment can't be run again by the miner's own doing; empty: it can.
std::string unauditable(const SegmentUnderWay& segment, const SegmentCommit& end, const std::vector<Epoch>& epochs) {
  const SegmentCommit& begin = *segment.begin;
  if (begin.state.is_zero() || end.state.is_zero()) return "its state was not stored";
  if (!end.whole) return "the miner could not keep it whole";
  if (end.first_receipt < begin.first_receipt) return "it ends before it begins";
  if (end.first_receipt - begin.first_receipt > kMaxSegmentReceipts) return "it is too long";
  // Receipts of the epoch before may come with the report that the next has begun.
  if (!epochs.empty() && (begin.epoch > epochs.front() || begin.epoch + 1 < epochs.front())) {
    return fmt::format("it is said to begin in epoch {}, but that was epoch {}", begin.epoch, epochs.front());
  }
  return "";
}

VerdictKind event_kind(AuditFinding finding) {
  if (finding == AuditFinding::kUnreadable) return VerdictKind::kInfrastructure;
  return finding == AuditFinding::kMissing ? VerdictKind::kCommitment : VerdictKind::kAuditedWork;
}

}  // namespace

// From 0 to 1, by the run's secret.
double AuditBoard::drawn(const char* what, MinerIndex miner, uint64_t incarnation, uint64_t number) const {
  Encoder encoder;
  encoder.write(std::string(what));
  encoder.write(secret_);
  encoder.write(miner);
  encoder.write(incarnation);
  encoder.write(number);
  const Digest digest = digest_of(encoder.take());
  uint64_t drawn = 0;
  for (size_t i = 0; i < sizeof(drawn); ++i) drawn |= uint64_t{digest.bytes[i]} << (8 * i);
  return static_cast<double>(drawn) / kTwoTo64;
}

bool AuditBoard::is_picked(MinerIndex miner, uint64_t incarnation, uint64_t number) const {
  return drawn("tessera audit pick", miner, incarnation, number) < spec_.share;
}

bool AuditBoard::is_upload_picked(MinerIndex miner, uint64_t incarnation, Epoch target) const {
  return drawn("tessera audit upload", miner, incarnation, target) < spec_.upload_share;
}

void AuditBoard::begin(MinerIndex miner, uint64_t incarnation, StageIndex stage, const std::string& device) {
  const auto found = state_.under_way.find(miner);
  if (found != state_.under_way.end() && found->second.incarnation == incarnation) return;  // it loaded its stage again
  SegmentUnderWay segment;
  segment.incarnation = incarnation;
  segment.stage = stage;
  segment.device = device;
  state_.under_way[miner] = std::move(segment);
}

uint64_t AuditBoard::known_segment(MinerIndex miner) const {
  const auto found = state_.under_way.find(miner);
  return found == state_.under_way.end() || !found->second.begin ? 0 : found->second.begin->number;
}

void AuditBoard::receipt(MinerIndex miner, const Receipt& receipt, Epoch epoch, bool may_snapshot) {
  const auto found = state_.under_way.find(miner);
  if (!spec_.enabled || found == state_.under_way.end()) return;
  SegmentUnderWay& segment = found->second;
  if (segment.epochs.empty() || segment.epochs.back().epoch != epoch) segment.epochs.push_back({receipt.sequence, epoch});
  if (++segment.receipts_since % kMaxSegmentReceipts == 0) {  // where is the commitment?
    segment.not_auditable += kMaxSegmentReceipts;
    segment.segments += kJudgedSegments;
  }
  const uint64_t number = known_segment(miner);
  // The commitment to the next segment's begin may still be on its way.
  if (!is_picked(miner, segment.incarnation, number) && !is_picked(miner, segment.incarnation, number + 1) &&
      !(may_snapshot && is_upload_picked(miner, segment.incarnation, epoch + 1))) {
    return;
  }
  if (segment.receipts.size() < 2 * kMaxSegmentReceipts) segment.receipts.push_back(receipt);
}

void AuditBoard::upload(MinerIndex miner, const UploadCommit& commit, const Digest& base) {
  const auto found = state_.under_way.find(miner);
  if (found == state_.under_way.end()) return;
  SegmentUnderWay& segment = found->second;
  std::vector<UploadMade>& uploads = segment.uploads;
  if (uploads.empty() || uploads.back().commit.target != commit.target) uploads.emplace_back();
  if (uploads.size() > kMostUploads) uploads.erase(uploads.begin());
  UploadMade& upload = uploads.back();
  if (upload.commit.snapshot_version != commit.snapshot_version) upload.audited = false;  // made anew, after an aborted merge
  upload.commit = commit;
  upload.base = base;
  // The segment that the snapshot was taken in may have ended before the upload was there.
  for (auto& [number, audit] : state_.open) {
    AuditTask& task = audit.task;
    if (task.miner != miner || audit.incarnation != segment.incarnation || audit.validator || task.upload) continue;
    if (!holds(task, commit)) continue;
    task.upload = commit;
    task.upload_base = base;
    upload.audited = true;
  }
  for (const EndedSegment& ended : std::exchange(segment.ended, {})) {
    if (audit_upload(segment, ended, upload)) break;
  }
}

// Of the segment that the snapshot was taken in. False: it was not in this one, or is not picked.
bool AuditBoard::audit_upload(const SegmentUnderWay& segment, const EndedSegment& ended, UploadMade& upload) {
  if (upload.audited || !holds(ended.task, upload.commit)) return false;
  if (!is_upload_picked(ended.task.miner, segment.incarnation, upload.commit.target)) return false;
  state_.uploads_picked++;
  EndedSegment with = ended;
  with.task.upload = upload.commit;
  with.task.upload_base = upload.base;
  upload.audited = open_audit(segment, std::move(with));
  return true;
}

void AuditBoard::schedule_changed() {
  for (auto& [miner, segment] : state_.under_way) segment.schedule_known = false;
}

// Its receipts come first, so that the segment that it ends is complete.
bool AuditBoard::is_news(MinerIndex miner, const SegmentCommit& commit, uint64_t receipts_through) const {
  return spec_.enabled && state_.under_way.count(miner) > 0 && commit.number == known_segment(miner) + 1 &&
         commit.first_receipt <= receipts_through + 1;
}

void AuditBoard::segment(MinerIndex miner, const SegmentCommit& commit, const Digest& base, std::vector<AuditNote>* notes) {
  const auto found = state_.under_way.find(miner);
  if (found == state_.under_way.end() || commit.number != known_segment(miner) + 1) return;
  SegmentUnderWay& segment = found->second;
  if (segment.begin) {
    state_.segments++;
    end_segment(miner, segment, commit, base, notes);
  }
  std::erase_if(segment.receipts, [&](const Receipt& receipt) { return receipt.sequence < commit.first_receipt; });
  while (segment.epochs.size() > 1 && segment.epochs[1].first_receipt <= commit.first_receipt) segment.epochs.erase(segment.epochs.begin());
  segment.receipts_since = 0;
  segment.schedule_known = true;
  segment.base = base;
  segment.begin = commit;
}

void AuditBoard::end_segment(MinerIndex miner, SegmentUnderWay& segment, const SegmentCommit& end, const Digest& next_base,
                             std::vector<AuditNote>* notes) {
  const SegmentCommit& begin = *segment.begin;
  const bool picked = is_picked(miner, segment.incarnation, begin.number);
  state_.picked += picked;
  const uint64_t length = end.first_receipt - std::min(begin.first_receipt, end.first_receipt);
  EndedSegment ended;
  ended.epochs = epochs_of(segment.epochs, begin.first_receipt, end.first_receipt);
  const std::string why = unauditable(segment, end, ended.epochs);
  segment.segments++;
  (why.empty() ? segment.auditable : segment.not_auditable) += length;
  AuditTask& task = ended.task;
  for (const Receipt& receipt : segment.receipts) {
    if (receipt.sequence >= begin.first_receipt && receipt.sequence < end.first_receipt) task.receipts.push_back(receipt);
  }
  if (!why.empty() || task.receipts.size() != length) {
    if (!picked) return;
    state_.unauditable++;
    notes->push_back({fmt::format("segment {} of miner {} can't be audited: {}", begin.number, miner,
                                  why.empty() ? "its receipts are not all there" : why), true});
    return;
  }
  if (length == 0) return;  // nothing was done
  task.miner = miner;
  task.stage = segment.stage;
  task.device = segment.device;
  task.begin = begin;
  task.end = end;
  task.schedule_known = segment.schedule_known;
  task.base = segment.base;
  if (end.epoch != begin.epoch) task.next_base = next_base;
  for (UploadMade& upload : segment.uploads) {
    if (audit_upload(segment, ended, upload)) return;  // as picked as can be
  }
  // Whether the next upload's snapshot is in this one is not known yet.
  if (is_upload_picked(miner, segment.incarnation, ended.epochs.back() + 1)) segment.ended.push_back(ended);
  if (segment.ended.size() > kMostAwaitUpload) segment.ended.erase(segment.ended.begin());
  if (!picked) return;
  for (const UploadMade& upload : segment.uploads) {
    if (!holds(task, upload.commit)) continue;
    task.upload = upload.commit;
    task.upload_base = upload.base;
  }
  open_audit(segment, std::move(ended));
}

bool AuditBoard::open_audit(const SegmentUnderWay& segment, EndedSegment ended) {
  if (state_.open.size() >= kMostOpenAudits) {
    state_.no_room++;
    return false;
  }
  ended.task.audit = state_.next_audit++;
  OpenAudit& audit = state_.open[ended.task.audit];
  audit.task = std::move(ended.task);
  audit.incarnation = segment.incarnation;
  audit.epochs = std::move(ended.epochs);
  return true;
}

std::optional<Verdict> AuditBoard::judge_auditable(MinerIndex miner, Epoch epoch) {
  const auto found = state_.under_way.find(miner);
  if (found == state_.under_way.end()) return std::nullopt;
  SegmentUnderWay& segment = found->second;
  const uint64_t all = segment.auditable + segment.not_auditable;
  if (all < kJudgedReceipts || segment.segments < kJudgedSegments) return std::nullopt;
  const double share = static_cast<double>(segment.auditable) / static_cast<double>(all);
  const uint64_t auditable = std::exchange(segment.auditable, 0);
  segment.not_auditable = 0;
  segment.segments = 0;
  if (share >= spec_.auditable_share) return std::nullopt;
  return Verdict{.miner = miner,
                 .stage = segment.stage,
                 .epoch = epoch,
                 .kind = VerdictKind::kCommitment,
                 .passed = false,
                 .reason = fmt::format("of its last {} receipts {} are of segments that can be run again: a share of {:.3f}, "
                                       "audit.auditable_share asks for {:g}", all, auditable, share, spec_.auditable_share),
                 .evidence = {}};
}

void AuditBoard::note_epoch(TimeMs now, StageIndex stage, Epoch epoch) {
  std::vector<EpochBegin>& epochs = state_.epochs[stage];
  if (!epochs.empty() && epochs.back().epoch >= epoch) return;
  epochs.push_back({epoch, now});
  if (epochs.size() > spec_.retention_epochs) epochs.erase(epochs.begin(), epochs.end() - spec_.retention_epochs);
}

TimeMs payloads_kept_since(const AuditState& state, const AuditSpec& spec) {
  TimeMs since = 0;
  for (const auto& [stage, epochs] : state.epochs) {
    if (epochs.size() < spec.retention_epochs) return 0;
    if (since == 0 || epochs.front().at < since) since = epochs.front().at;
  }
  return since;
}

void AuditBoard::join(const ValidatorJoined& event) {
  const auto known = state_.validators.find(event.node);
  if (known == state_.validators.end() && state_.validators.size() >= kMostValidators) return;
  ValidatorRecord& validator = state_.validators[event.node];
  if (validator.incarnation != event.incarnation) {
    std::vector<AuditNote> notes;
    lose({event.node, "another process took its place"}, &notes);
  }
  validator.incarnation = event.incarnation;
  validator.device = event.device;
  validator.software = event.software;
  validator.live = true;
}

void AuditBoard::lose(const ValidatorLost& event, std::vector<AuditNote>* notes) {
  const auto known = state_.validators.find(event.node);
  if (known == state_.validators.end()) return;
  known->second.live = false;
  std::vector<uint64_t> held;
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator == event.node) held.push_back(number);
  }
  for (const uint64_t number : held) take_back(number, fmt::format("validator {} is gone: {}", event.node.brief(), event.reason), notes);
}

void AuditBoard::take_back(uint64_t number, const std::string& why, std::vector<AuditNote>* notes) {
  OpenAudit& audit = state_.open.at(number);
  audit.last_validator = audit.validator;
  audit.validator.reset();
  audit.deadline = 0;
  if (audit.attempts < kMostAttempts) {
    notes->push_back({fmt::format("audit {} goes to another validator: {}", number, why), true});
    return;
  }
  state_.given_up++;
  notes->push_back({fmt::format("audit {} is given up after {} attempts: {}", number, audit.attempts, why), true, number});
  state_.open.erase(number);
}

// The oldest that waits of the miners on its own kind of device, where honest bits are equal; of others only if nobody else is there
// for them. One that this validator had already only if nobody else is there for it.
std::optional<uint64_t> AuditBoard::audit_for(const NodeId& validator) const {
  const auto known = state_.validators.find(validator);
  if (known == state_.validators.end() || !known->second.live) return std::nullopt;
  const bool others = std::any_of(state_.validators.begin(), state_.validators.end(), [&](const auto& entry) {
    return entry.first != validator && entry.second.live;
  });
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator == validator) return number;  // it has it already, or the answer was lost
  }
  const std::string own = device_kind(known->second.device);
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator || (others && audit.last_validator == validator)) continue;
    const std::string kind = device_kind(audit.task.device);
    const bool has_its_own = std::any_of(state_.validators.begin(), state_.validators.end(), [&](const auto& entry) {
      return entry.second.live && device_kind(entry.second.device) == kind;
    });
    if (kind == own || !has_its_own) return number;
  }
  return std::nullopt;
}

void AuditBoard::lease(TimeMs now, const AuditLeased& event) {
  const auto found = state_.open.find(event.audit);
  if (found == state_.open.end() || found->second.validator) return;
  found->second.validator = event.validator;
  found->second.deadline = now + spec_.lease_ms;
  found->second.attempts++;
}

bool AuditBoard::is_awaited(const NodeId& validator, const AuditResult& result) const {
  const auto found = state_.open.find(result.audit);
  return found != state_.open.end() && found->second.validator == validator;
}

std::vector<Verdict> AuditBoard::verdicts_of(const AuditResult& result) const {
  const OpenAudit& audit = state_.open.at(result.audit);
  Verdict verdict;
  verdict.miner = audit.task.miner;
  verdict.stage = audit.task.stage;
  verdict.kind = event_kind(result.finding);
  verdict.passed = result.finding == AuditFinding::kNone;
  verdict.reason = fmt::format("audit {} of segment {}: {}", result.audit, audit.task.begin.number,
                               verdict.passed ? result.reason : fmt::format("{}: {}", name_of(result.finding), result.reason));
  verdict.evidence = result.evidence;
  std::vector<Verdict> verdicts;
  for (const Epoch epoch : audit.epochs) {
    verdict.epoch = epoch;
    verdicts.push_back(verdict);
    if (!voids_epoch(verdict)) break;
  }
  return verdicts;
}

void AuditBoard::finish(const AuditFinished& event, std::vector<AuditNote>* notes) {
  if (!is_awaited(event.validator, event.result)) return;
  const AuditTask& task = state_.open.at(event.result.audit).task;
  if (const auto validator = state_.validators.find(event.validator); validator != state_.validators.end()) validator->second.finished++;
  uint64_t& counter = event.result.finding == AuditFinding::kNone         ? state_.passed
                      : event.result.finding == AuditFinding::kUnreadable ? state_.unreadable
                                                                          : state_.failed;
  counter++;
  const bool passed = event.result.finding == AuditFinding::kNone;
  notes->push_back({passed ? std::string()
                           : fmt::format("audit {}: miner {} of stage {}, segment {} in epoch {}: {}: {}", task.audit, task.miner,
                                         task.stage, task.begin.number, task.begin.epoch, name_of(event.result.finding),
                                         event.result.reason),
                    !passed, task.audit});
  state_.open.erase(event.result.audit);
}

void AuditBoard::expire(TimeMs now, std::vector<AuditNote>* notes) {
  std::vector<uint64_t> late;
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator && now >= audit.deadline) late.push_back(number);
  }
  for (const uint64_t number : late) take_back(number, "it was not done in time", notes);
}

TimeMs AuditBoard::next_deadline() const {
  TimeMs next = 0;
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator && (next == 0 || audit.deadline < next)) next = audit.deadline;
  }
  return next;
}

}  // namespace tessera::core
