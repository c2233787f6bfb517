#include "tessera/core/audit_board.h"

#include <fmt/format.h>

#include <algorithm>

#include "tessera/base/crypto.h"

namespace tessera::core {
namespace {

constexpr double kTwoTo64 = 18446744073709551616.0;

bool holds(const SegmentCommit& begin, const SegmentCommit& end, const UploadCommit& upload) {
  return upload.target == begin.epoch + 1 && upload.snapshot_version >= begin.weight_version &&
         upload.snapshot_step >= begin.local_step && upload.snapshot_step <= begin.local_step + end.steps.size();
}

VerdictKind event_kind(AuditFinding finding) {
  if (finding == AuditFinding::kUnreadable) return VerdictKind::kInfrastructure;
  return finding == AuditFinding::kMissing ? VerdictKind::kCommitment : VerdictKind::kAuditedWork;
}

}  // namespace

bool AuditBoard::is_picked(MinerIndex miner, uint64_t incarnation, uint64_t number) const {
  Encoder encoder;
  encoder.write(std::string("tessera audit pick"));
  encoder.write(secret_);
  encoder.write(miner);
  encoder.write(incarnation);
  encoder.write(number);
  const Digest digest = digest_of(encoder.take());
  uint64_t drawn = 0;
  for (size_t i = 0; i < sizeof(drawn); ++i) drawn |= uint64_t{digest.bytes[i]} << (8 * i);
  return static_cast<double>(drawn) < spec_.share * kTwoTo64;
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

void AuditBoard::receipt(MinerIndex miner, const Receipt& receipt) {
  const auto found = state_.under_way.find(miner);
  if (!spec_.enabled || found == state_.under_way.end()) return;
  SegmentUnderWay& segment = found->second;
  const uint64_t number = known_segment(miner);
  // The commitment to the next segment's begin may still be on its way.
  if (!is_picked(miner, segment.incarnation, number) && !is_picked(miner, segment.incarnation, number + 1)) return;
  if (segment.receipts.size() >= 2 * kMaxSegmentReceipts) {
    segment.complete = false;
    return;
  }
  segment.receipts.push_back(receipt);
}

void AuditBoard::upload(MinerIndex miner, const UploadCommit& commit) {
  if (const auto found = state_.under_way.find(miner); found != state_.under_way.end()) found->second.upload = commit;
  // The segment that the snapshot was taken in may have ended before the upload was there.
  for (auto& [number, audit] : state_.open) {
    AuditTask& task = audit.task;
    if (task.miner == miner && !audit.validator && !task.upload && holds(task.begin, task.end, commit)) task.upload = commit;
  }
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
    if (is_picked(miner, segment.incarnation, segment.begin->number)) open_audit(miner, segment, commit, base, notes);
  }
  std::erase_if(segment.receipts, [&](const Receipt& receipt) { return receipt.sequence < commit.first_receipt; });
  if (!is_picked(miner, segment.incarnation, commit.number) && !is_picked(miner, segment.incarnation, commit.number + 1)) {
    segment.receipts.clear();
  }
  if (segment.upload && segment.upload->target <= commit.epoch) segment.upload.reset();
  segment.complete = true;
  segment.schedule_known = true;
  segment.base = base;
  segment.begin = commit;
}

void AuditBoard::open_audit(MinerIndex miner, const SegmentUnderWay& segment, const SegmentCommit& end,
                            const Digest& next_base, std::vector<AuditNote>* notes) {
  state_.picked++;
  const SegmentCommit& begin = *segment.begin;
  AuditTask task;
  for (const Receipt& receipt : segment.receipts) {
    if (receipt.sequence >= begin.first_receipt && receipt.sequence < end.first_receipt) task.receipts.push_back(receipt);
  }
  const uint64_t expected = end.first_receipt >= begin.first_receipt ? end.first_receipt - begin.first_receipt : UINT64_MAX;
  const bool stored = !begin.state.is_zero() && !end.state.is_zero();
  if (!stored || !end.whole || !segment.complete || task.receipts.size() != expected || expected > kMaxSegmentReceipts) {
    state_.unauditable++;
    notes->push_back({fmt::format("segment {} of miner {} can't be audited: {}", begin.number, miner,
                                  !stored      ? "its state was not stored"
                                  : !end.whole ? "the miner could not keep it whole"
                                               : "its receipts are not all there"),
                      true});
    return;
  }
  if (expected == 0) return;  // nothing was done
  if (state_.open.size() >= kMostOpenAudits) {
    state_.no_room++;
    return;
  }
  task.audit = state_.next_audit++;
  task.miner = miner;
  task.stage = segment.stage;
  task.device = segment.device;
  task.begin = begin;
  task.end = end;
  task.schedule_known = segment.schedule_known;
  task.base = segment.base;
  if (end.epoch != begin.epoch) task.next_base = next_base;
  if (segment.upload && holds(begin, end, *segment.upload)) task.upload = segment.upload;
  state_.open[task.audit].task = std::move(task);
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

// The oldest that waits; one that this validator had already only if nobody else is there for it.
std::optional<uint64_t> AuditBoard::audit_for(const NodeId& validator) const {
  const auto known = state_.validators.find(validator);
  if (known == state_.validators.end() || !known->second.live) return std::nullopt;
  const bool others = std::any_of(state_.validators.begin(), state_.validators.end(), [&](const auto& entry) {
    return entry.first != validator && entry.second.live;
  });
  for (const auto& [number, audit] : state_.open) {
    if (audit.validator == validator) return number;  // it has it already, or the answer was lost
  }
  for (const auto& [number, audit] : state_.open) {
    if (!audit.validator && !(others && audit.last_validator == validator)) return number;
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

Verdict AuditBoard::verdict_of(const AuditResult& result) const {
  const AuditTask& task = state_.open.at(result.audit).task;
  Verdict verdict;
  verdict.miner = task.miner;
  verdict.stage = task.stage;
  verdict.epoch = task.begin.epoch;
  verdict.kind = event_kind(result.finding);
  verdict.passed = result.finding == AuditFinding::kNone;
  verdict.reason = fmt::format("audit {} of segment {}: {}", result.audit, task.begin.number,
                               verdict.passed ? result.reason : fmt::format("{}: {}", name_of(result.finding), result.reason));
  verdict.evidence = result.evidence;
  return verdict;
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
