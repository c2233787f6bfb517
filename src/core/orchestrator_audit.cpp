// The orchestrator's side of audits: what the board (core/audit_board.h) is told, and what validators are told.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr uint32_t kReportMs = 500;

}  // namespace

AuditBoard Orchestrator::audits() { return AuditBoard(state_.audits, state_.spec.audit, state_.secret); }
// The board changes nothing when it is asked.
const AuditBoard Orchestrator::audits() const {
  return AuditBoard(const_cast<AuditState&>(state_.audits), state_.spec.audit, state_.secret);
}

void Orchestrator::say(const std::vector<AuditNote>& notes) {
  for (const AuditNote& note : notes) {
    if (!note.text.empty()) say(note.text, note.warning);
    if (note.over != 0) unseal_audit(note.over);
  }
}

void Orchestrator::unseal_audit(uint64_t audit) {
  effects_.publish.push_back(SecretUnsealed{.kind = AuditLeased::kName, .id = audit, .key = {}});
}

// Of work that was forgotten, or that another layout of the stages did.
void Orchestrator::forget_audits() {
  state_.audits.given_up += state_.audits.open.size();
  for (const auto& [number, audit] : state_.audits.open) {
    if (audit.attempts > 0) unseal_audit(number);
  }
  state_.audits.open.clear();
  state_.audits.under_way.clear();
}

void Orchestrator::on(const SegmentCommitted& event) {
  if (!state_.miners.has(event.miner)) return;
  const MinerRecord& miner = state_.miners[event.miner];
  if (!miner.placed) return;
  std::vector<AuditNote> notes;
  const Digest base = state_.stages[miner.stage].state_at(event.commit.epoch).value_or(Digest{});
  audits().note_epoch(now_, miner.stage, miner.epoch);
  audits().segment(event.miner, event.commit, base, &notes);
  say(notes);
  judge_auditable(miner);
}

void Orchestrator::judge_auditable(const MinerRecord& miner) {
  if (auto verdict = audits().judge_auditable(miner.index, miner.epoch)) effects_.publish.push_back(VerdictRecorded{*std::move(verdict)});
}

// It may be asked for its upload before the segment after the one under way ends.
bool Orchestrator::may_snapshot(const MinerRecord& miner) const {
  const MergeSpec& merge = state_.spec.merge;
  const uint64_t segment = uint64_t{state_.spec.audit.segment_steps} * state_.spec.training.microbatches_per_step;
  return merge.enabled && (state_.stages[miner.stage].merge || miner.fresh_total() + 2 * segment >= merge.min_microbatches);
}

void Orchestrator::audit_receipt(const MinerRecord& miner, const Receipt& receipt) {
  if (!state_.spec.audit.enabled) return;
  audits().receipt(miner.index, receipt, miner.epoch, may_snapshot(miner));
  judge_auditable(miner);
}

void Orchestrator::audit_upload(const MinerRecord& miner, const UploadCommit& upload) {
  const StageRecord& stage = state_.stages[miner.stage];
  audits().upload(miner.index, upload, stage.state_at(upload.target - 1).value_or(Digest{}));
}

void Orchestrator::on(const ValidatorJoined& event) {
  audits().join(event);
  say(fmt::format("validator {} on {} is there", event.node.brief(), event.device));
}

void Orchestrator::on(const ValidatorLost& event) {
  std::vector<AuditNote> notes;
  audits().lose(event, &notes);
  say(fmt::format("validator {} lost: {}", event.node.brief(), event.reason), true);
  say(notes);
}

void Orchestrator::on(const AuditLeased& event) { audits().lease(now_, event); }

void Orchestrator::on(const AuditFinished& event) {
  std::vector<AuditNote> notes;
  audits().finish(event, &notes);
  say(notes);
}

std::vector<Event> Orchestrator::news_in(const NodeId& validator, const ValidatorReport& report) const {
  std::vector<Event> news;
  const auto known = state_.audits.validators.find(validator);
  const bool is_new = known == state_.audits.validators.end();
  if (is_new ? state_.audits.validators.size() < kMostValidators
             : !known->second.live || known->second.incarnation != report.incarnation) {
    news.emplace_back(ValidatorJoined{validator, report.incarnation, report.device, report.software});
  }
  std::set<uint64_t> taken;
  for (const AuditResult& result : report.results) {
    if (!audits().is_awaited(validator, result) || !taken.insert(result.audit).second) continue;
    news.emplace_back(AuditFinished{validator, result});
    for (Verdict& verdict : audits().verdicts_of(result)) news.emplace_back(VerdictRecorded{std::move(verdict)});
  }
  return news;
}

std::optional<Event> Orchestrator::audit_request_in(const NodeId& validator, const ValidatorReport& report) const {
  if (!report.wants_work || report.working_on != 0) return std::nullopt;
  const std::optional<uint64_t> audit = audits().audit_for(validator);
  if (!audit || state_.audits.open.at(*audit).validator) return std::nullopt;
  return AuditLeased{*audit, validator};
}

ValidatorOrders Orchestrator::orders_for(const NodeId& validator, const ValidatorReport& report) const {
  ValidatorOrders orders;
  orders.run_id = state_.run_id;
  orders.spec_version = state_.spec_version;
  if (report.spec_version != state_.spec_version) {
    orders.run_spec = encode(state_.spec);
    orders.data_plan = encode(state_.data);
  }
  for (const AuditResult& result : report.results) orders.results_known.push_back(result.audit);
  orders.report_ms = kReportMs;
  const auto held = std::find_if(state_.audits.open.begin(), state_.audits.open.end(),
                                 [&](const auto& entry) { return entry.second.validator == validator; });
  if (held != state_.audits.open.end() && report.working_on == 0) {
    orders.task = held->second.task;
    orders.task->lifetime_ms = static_cast<uint32_t>(std::max<TimeMs>(held->second.deadline - now_, 0));
  }
  // What is under audit is finished; then there is nothing to come.
  orders.leave = state_.phase == RunPhase::kFinished && state_.audits.open.empty();
  return orders;
}

}  // namespace tessera::core
