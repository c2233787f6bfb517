// Opening, the journal and time. Calls are handled in orchestrator_calls.cpp.
#include "tessera/node/orchestrator_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tessera/base/log.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/object.h"
#include "tessera/core/run_changes.h"
#include "tessera/core/stage_layout.h"

namespace tessera::node {
namespace {

constexpr TimeMs kGoodbyeMs = 2000;  // for the miners to hear that the run is over

// A stage travels as an object, whose manifest has to fit into one blob.
Status check_block_count(const core::RunSpec& spec) {
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    const uint64_t values = core::stage_value_count(spec, s);
    const uint64_t most = uint64_t{core::kMaxChunks} * core::kMaxChunkBytes / (5 * sizeof(float));
    if (values > most) {
      return invalid_argument("stage {} has {} values, and a miner's state of at most {} fits into an object: the run needs more "
                              "stages", s, values, most);
    }
    const uint64_t most_blocks = core::kMaxChunks / core::merge_planes(spec.merge);
    const uint64_t needed = (values + most_blocks - 1) / most_blocks;
    if (needed > spec.merge.block_values) {
      return invalid_argument("stage {} has {} values: merge.block_values must be at least {}, or the run needs more stages",
                              s, values, needed);
    }
  }
  return ok_status();
}

}  // namespace

Status OrchestratorControl::replay() {
  const auto visit = [this](const ports::JournalRecord& record) -> Status {
    if (record.kind == ports::kSnapshotKind) return ok_status();
    const std::optional<core::Event> event = core::decode_event(record.kind, record.body);
    if (!event) {
      return data_loss("journal entry {} ('{}') can't be read by this version; use the version that wrote it",
                       record.sequence, record.kind);
    }
    last_time_ = std::max(last_time_, record.unix_ms);
    core_.step(last_time_, *event);
    return ok_status();
  };
  TESSERA_ASSIGN_OR_RETURN(const uint64_t after, snapshots_.restore(&core_));
  last_time_ = core_.now();
  return journal_.replay(after, visit);
}

Status OrchestratorControl::begin_or_resume(ports::BlobLink& blobs) {
  const core::OrchestratorState& state = core_.state();
  run_id_ = state.created           ? state.run_id
            : options_.resume_from ? options_.resume_from->run_id
                                   : surroundings_.random_bytes(16);
  if (!options_.spec) {
    if (options_.resume_from) return failed_precondition("--resume needs the run's YAML: set run_config");
    return ok_status();
  }
  TESSERA_RETURN_IF_ERROR(check_block_count(*options_.spec));
  const std::string spec = encode(*options_.spec);
  if (!state.created) {
    TESSERA_RETURN_IF_ERROR(create(*options_.spec, options_.data));
  } else if (!options_.resume_from && state.file_spec != spec && encode(state.spec) != spec) {
    return failed_precondition(
        "this folder holds the journal of a run with other settings (section {}); use its settings, another folder, or "
        "--resume", core::differing_sections(core_.state().spec, *options_.spec));
  }
  if (options_.resume_from) {
    TESSERA_ASSIGN_OR_RETURN(core::RunResumed resumed,
                             publish_checkpoint(blobs, *options_.resume_from, *options_.spec, options_.data));
    TESSERA_RETURN_IF_ERROR(apply(std::move(resumed)));
  }
  return ok_status();
}

Status OrchestratorControl::create(const core::RunSpec& spec, const core::DataPlan& data) {
  TESSERA_RETURN_IF_ERROR(check_block_count(spec));
  core::RunCreated created;
  created.run_id = run_id_;
  created.run_spec = encode(spec);
  created.data_plan = encode(data);
  const std::string secret = surroundings_.random_bytes(sizeof(created.secret));
  std::memcpy(&created.secret, secret.data(), sizeof(created.secret));
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) created.stage_values.push_back(core::stage_value_count(spec, s));
  return apply(std::move(created));
}

Status OrchestratorControl::open(ports::BlobLink& blobs) {
  TESSERA_RETURN_IF_ERROR(replay());
  const bool replayed = core_.state().created;
  TESSERA_RETURN_IF_ERROR(begin_or_resume(blobs));
  TESSERA_RETURN_IF_ERROR(commit());
  const core::OrchestratorState& state = core_.state();
  if (replayed && !options_.resume_from) {
    spdlog::info("journal replayed: {} entries, run is {}, {} of {} microbatches done", journal_.last_sequence(),
                 core::name_of(state.phase), state.done, state.spec.total_microbatches());
  }
  // Every miner that lived gets a full timeout to answer again.
  for (const core::MinerRecord& miner : state.miners) {
    if (miner.live) heard_.heard(miner.index, monotonic());
  }
  // Effects are not replayed: what was under way in the background is begun again.
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    if (std::optional<core::RemakeState> wanted = core_.pending_remake(s)) surroundings_.start(*std::move(wanted));
    for (core::RecheckResult& result : core_.pending_rechecks(s)) surroundings_.start(std::move(result));
    if (!state.stages[s].merge) continue;
    for (core::RecomputeShard& shard : core_.pending_recomputations(s)) surroundings_.start(std::move(shard));
  }
  if (state.phase == core::RunPhase::kCheckpointing && state.checkpoint_writing) {
    surroundings_.start(make_checkpoint_job(state));
  }
  if (state.restage && state.restage->writing) surroundings_.start(make_restage_job(state));
  return ok_status();
}

Status OrchestratorControl::apply(core::Event event) {
  const TimeMs time = now();
  ports::JournalRecord record;
  record.unix_ms = time;
  record.kind = core::event_name(event);
  record.body = core::event_body(event);
  if (options_.journal_json) record.json = core::event_json(event);
  batch_.push_back(std::move(record));
  core::Effects effects = core_.step(time, event);
  const std::vector<core::Event> published = std::move(effects.publish);
  perform(std::move(effects));
  for (const core::Event& secret : published) TESSERA_RETURN_IF_ERROR(apply(secret));
  return ok_status();
}

void OrchestratorControl::perform(core::Effects effects) {
  for (const core::Decision& decision : effects.decisions) {
    spdlog::log(decision.warning ? spdlog::level::warn : spdlog::level::info, "{}", decision.text);
  }
  for (const core::ForgottenMiner& gone : effects.forgotten) forget(gone);
  // Jobs read only what is journalled or in the blob store, so they may begin before the commit.
  for (core::RecomputeShard& shard : effects.recompute) surroundings_.start(std::move(shard));
  for (core::RemakeState& wanted : effects.remake) surroundings_.start(std::move(wanted));
  for (core::RecheckResult& result : effects.recheck) surroundings_.start(std::move(result));
  if (effects.restage) surroundings_.start(make_restage_job(core_.state()));
  if (effects.checkpoint) surroundings_.start(make_checkpoint_job(core_.state()));
}

void OrchestratorControl::forget(const core::ForgottenMiner& gone) {
  sessions_.erase(gone.miner);
  heard_.forget(gone.miner);
  taken_over_at_.erase(gone.miner);
  statuses_.erase(gone.miner);
  told_to_leave_.erase(gone.miner);
  published_checked_.erase(gone.miner);
  blob_asks_.forget(gone.miner);
  surroundings_.forgotten(gone.node);
}

Status OrchestratorControl::commit() {
  snapshots_.add_part(last_time_, &batch_);
  if (!batch_.empty()) {
    TESSERA_RETURN_IF_ERROR(annotate(journal_.append(&batch_), "journal"));
    batch_.clear();
  }
  // Each hands its answer over: a status that two threads share would be freed by whoever is last.
  for (const auto& answer : answers_) answer();
  answers_.clear();
  snapshots_.take_if_due(core_);
  return ok_status();
}

// Silence and deadlines become events.
Status OrchestratorControl::watch_time() {
  const TimeMs monotonic = this->monotonic();
  const uint32_t limit = core_.state().spec.timeouts.miner_lost_ms;
  for (const MinerIndex miner : heard_.take_silent_since(monotonic - limit)) {
    if (!core_.state().miners[miner].live) continue;
    TESSERA_RETURN_IF_ERROR(apply(core::MinerLost{miner, fmt::format("silent for {} ms", limit)}));
  }
  TESSERA_RETURN_IF_ERROR(watch_validators());
  if (core_.due(now())) TESSERA_RETURN_IF_ERROR(apply(core::Ticked{}));
  return ok_status();
}

bool OrchestratorControl::over() {
  const core::RunPhase phase = core_.state().phase;
  if (phase != core::RunPhase::kFinished && phase != core::RunPhase::kStopped) {
    over_since_ = 0;
    return false;
  }
  // Work that a validator still has before it is judged; leases bound the wait.
  const core::AuditState& audits = core_.state().audits;
  const bool judged = audits.open.empty() || std::none_of(audits.validators.begin(), audits.validators.end(),
                                                          [](const auto& entry) { return entry.second.live; });
  if (phase == core::RunPhase::kFinished && !judged) return false;
  if (over_since_ == 0) over_since_ = monotonic();
  const auto& miners = core_.state().miners;
  const bool all_told = std::all_of(miners.begin(), miners.end(), [&](const core::MinerRecord& miner) {
    return !miner.live || told_to_leave_[miner.index];
  });
  return all_told || monotonic() - over_since_ > kGoodbyeMs;
}

}  // namespace tessera::node
