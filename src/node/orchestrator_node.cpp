// Starting, the control loop and the background thread. Calls are handled in orchestrator_calls.cpp.
#include "tessera/node/orchestrator_node.h"

#include <fmt/format.h>

#include <algorithm>

#include "live_blobs.h"
#include "orchestrator_shell.h"
#include "tessera/base/log.h"
#include "tessera/core/object.h"
#include "tessera/core/run_changes.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/merge_reduce.h"

namespace tessera::node {
namespace {

constexpr size_t kBatchLimit = 512;  // requests that share one journal transaction
constexpr auto kWait = std::chrono::milliseconds(20);
constexpr TimeMs kSweepMs = 60000;   // between two collections of unneeded blobs
constexpr TimeMs kGoodbyeMs = 2000;  // for the miners to hear that the run is over

}  // namespace

namespace {

// A stage travels as an object, whose manifest has to fit into one blob.
Status check_block_count(const core::RunSpec& spec) {
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    const uint64_t values = core::stage_value_count(spec, s);
    const uint64_t needed = (values + core::kMaxChunks - 1) / core::kMaxChunks;
    if (needed > spec.merge.block_values) {
      return invalid_argument("stage {} has {} values: merge.block_values must be at least {}, or the run needs more stages",
                              s, values, needed);
    }
  }
  return ok_status();
}

}  // namespace

Status OrchestratorNode::Shell::replay() {
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
  return ports_.journal->replay(after, visit);
}

Status OrchestratorNode::Shell::begin_or_resume() {
  const core::OrchestratorState& state = core_.state();
  run_id_ = state.created           ? state.run_id
            : options_.resume_from ? options_.resume_from->run_id
                                   : random_bytes(16);
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
                             publish_checkpoint(*ports_.blobs, *options_.resume_from, *options_.spec, options_.data));
    TESSERA_RETURN_IF_ERROR(apply(std::move(resumed)));
  }
  return ok_status();
}

Status OrchestratorNode::Shell::create(const core::RunSpec& spec, const core::DataPlan& data) {
  TESSERA_RETURN_IF_ERROR(check_block_count(spec));
  core::RunCreated created;
  created.run_id = run_id_;
  created.run_spec = encode(spec);
  created.data_plan = encode(data);
  created.secret = random_u64();
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) created.stage_values.push_back(core::stage_value_count(spec, s));
  return apply(std::move(created));
}

Status OrchestratorNode::Shell::start() {
  TESSERA_RETURN_IF_ERROR(replay());
  const bool replayed = core_.state().created;
  TESSERA_RETURN_IF_ERROR(begin_or_resume());
  TESSERA_RETURN_IF_ERROR(commit());
  const core::OrchestratorState& state = core_.state();
  if (replayed && !options_.resume_from) {
    spdlog::info("journal replayed: {} entries, run is {}, {} of {} microbatches done", ports_.journal->last_sequence(),
                 core::name_of(state.phase), state.done, state.spec.total_microbatches());
  }
  // Every miner that lived gets a full timeout to answer again.
  for (const core::MinerRecord& miner : state.miners) {
    if (miner.live) heard_.heard(miner.index, monotonic_now_ms());
  }
  background_ = std::jthread([this] { background_loop(); });
  // Effects are not replayed: what was under way in the background is begun again.
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    if (!state.stages[s].merge) continue;
    for (const core::RecomputeShard& shard : core_.pending_recomputations(s)) {
      TESSERA_CHECK(jobs_.push(shard) == PushResult::kOk);
    }
  }
  if (state.phase == core::RunPhase::kCheckpointing && state.checkpoint_writing) {
    TESSERA_CHECK(jobs_.push(make_checkpoint_job(state)) == PushResult::kOk);
  }
  if (state.restage && state.restage->writing) push_restage();
  return ok_status();
}

Status OrchestratorNode::Shell::apply(core::Event event) {
  const TimeMs time = now();
  ports::JournalRecord record;
  record.unix_ms = time;
  record.kind = core::event_name(event);
  record.body = core::event_body(event);
  record.json = core::event_json(event);
  batch_.push_back(std::move(record));
  core::Effects effects = core_.step(time, event);
  const std::vector<core::Event> published = std::move(effects.publish);
  perform(std::move(effects));
  for (const core::Event& secret : published) TESSERA_RETURN_IF_ERROR(apply(secret));
  return ok_status();
}

void OrchestratorNode::Shell::perform(core::Effects effects) {
  for (const core::Decision& decision : effects.decisions) {
    spdlog::log(decision.warning ? spdlog::level::warn : spdlog::level::info, "{}", decision.text);
  }
  // Jobs read only what is journalled or in the blob store, so they may begin before the commit.
  for (core::RecomputeShard& shard : effects.recompute) TESSERA_CHECK(jobs_.push(std::move(shard)) != PushResult::kFull);
  if (effects.restage) push_restage();
  if (effects.checkpoint) TESSERA_CHECK(jobs_.push(make_checkpoint_job(core_.state())) != PushResult::kFull);
}

void OrchestratorNode::Shell::push_restage() {
  const core::OrchestratorState& state = core_.state();
  RestageJob job{.id = state.restage->id, .before = state.spec, .after = state.spec, .states = {}};
  job.after.pipeline.stage_layers = state.restage->stage_layers;
  for (const core::StageRecord& stage : state.stages) job.states.push_back(stage.state);
  TESSERA_CHECK(jobs_.push(std::move(job)) != PushResult::kFull);
}

Status OrchestratorNode::Shell::commit() {
  snapshots_.add_part(last_time_, &batch_);
  if (!batch_.empty()) {
    TESSERA_RETURN_IF_ERROR(annotate(ports_.journal->append(&batch_), "journal"));
    batch_.clear();
  }
  // Each hands its answer over: a status that two threads share would be freed by whoever is last.
  for (const auto& answer : answers_) answer();
  answers_.clear();
  return ok_status();
}

// Silence and deadlines become events.
Status OrchestratorNode::Shell::watch_time() {
  const TimeMs monotonic = monotonic_now_ms();
  const uint32_t limit = core_.state().spec.timeouts.miner_lost_ms;
  for (const MinerIndex miner : heard_.take_silent_since(monotonic - limit)) {
    if (!core_.state().miners[miner].live) continue;
    TESSERA_RETURN_IF_ERROR(apply(core::MinerLost{miner, fmt::format("silent for {} ms", limit)}));
  }
  if (core_.due(now())) TESSERA_RETURN_IF_ERROR(apply(core::Ticked{}));
  return ok_status();
}

bool OrchestratorNode::Shell::over(TimeMs now) {
  const core::RunPhase phase = core_.state().phase;
  if (phase != core::RunPhase::kFinished && phase != core::RunPhase::kStopped) {
    over_since_ = 0;
    return false;
  }
  if (over_since_ == 0) over_since_ = now;
  const auto& miners = core_.state().miners;
  const bool all_told = std::all_of(miners.begin(), miners.end(), [&](const core::MinerRecord& miner) {
    return !miner.live || told_to_leave_[miner.index];
  });
  return all_told || now - over_since_ > kGoodbyeMs;
}

void OrchestratorNode::Shell::close() {
  calls_.close();
  jobs_.close();
  while (std::optional<Call> call = calls_.try_pop()) {
    std::visit(
        [](auto& waiting) {
          if constexpr (requires { waiting.done; }) waiting.done(unavailable("the orchestrator is stopping"));
        },
        *call);
  }
}

StatusOr<std::string> OrchestratorNode::Shell::run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon) {
  bool stopping = false;
  while (true) {
    std::optional<Call> call = calls_.pop(kWait);
    for (size_t i = 0; call && i < kBatchLimit; ++i) {
      TESSERA_RETURN_IF_ERROR(handle(std::move(*call)));
      call = calls_.try_pop();
    }
    if (call) TESSERA_RETURN_IF_ERROR(handle(std::move(*call)));
    TESSERA_RETURN_IF_ERROR(watch_time());
    if (stop.load() && !stopping) {
      stopping = true;
      if (!core_.state().created) return std::string("stopped; no run was created");
      TESSERA_RETURN_IF_ERROR(apply(core::Commanded{core::Command::kStop}));
    }
    TESSERA_RETURN_IF_ERROR(commit());
    snapshots_.take_if_due(core_);
    sweep_if_due();
    if (abandon.load()) return std::string("stopped at once; the journal has everything that was acknowledged");
    if ((options_.exit_when_over || stopping) && over(monotonic_now_ms())) {
      return fmt::format("the run is {}", core::name_of(core_.state().phase));
    }
  }
}

core::ShardRecomputed OrchestratorNode::Shell::recompute(const core::RecomputeShard& shard) {
  const ReduceInputs inputs{.uploads = shard.uploads,
                            .first_block = shard.first_block,
                            .block_count = shard.block_count,
                            .block_values = shard.block_values,
                            .stage_values = shard.stage_values};
  core::ShardRecomputed done{.stage = shard.stage, .commit = {shard.target, shard.shard, Digest{}}, .unreadable = {}};
  const StatusOr<Digest> object = reduce_shard(*ports_.blobs, inputs);
  if (object.ok()) {
    done.commit.object = *object;
  } else {
    spdlog::warn("recomputing a shard: {}", message_of(object.status()));
    done.unreadable = unreadable_uploads(*ports_.blobs, inputs);
  }
  return done;
}

void OrchestratorNode::Shell::sweep_if_due() {
  if (!ports_.sweep_blobs || monotonic_now_ms() - swept_at_ < kSweepMs) return;
  swept_at_ = monotonic_now_ms();
  jobs_.push(SweepJob{live_objects(core_.state())});
}

void OrchestratorNode::Shell::sweep(const SweepJob& job) {
  const StatusOr<uint64_t> removed = ports_.sweep_blobs(blobs_of(*ports_.blobs, job.live));
  if (!removed.ok()) {
    spdlog::warn("collecting unneeded blobs: {}", message_of(removed.status()));
  } else if (*removed > 0) {
    spdlog::info("removed {} bytes of blobs that nothing needs any more", *removed);
  }
}

void OrchestratorNode::Shell::background_loop() {
  while (true) {
    std::optional<OrchestratorJob> job = jobs_.pop(std::chrono::milliseconds(1000));
    if (jobs_.closed()) return;  // what is left begins again after a restart
    if (!job) continue;
    if (auto* shard = std::get_if<core::RecomputeShard>(&*job)) {
      calls_.push(core::Event(recompute(*shard)));
    } else if (const auto* stages = std::get_if<RestageJob>(&*job)) {
      calls_.push(core::Event(restage(*ports_.blobs, *stages)));
    } else if (auto* wanted = std::get_if<CreateJob>(&*job)) {
      CreatedCall created{options_.prepare_run(wanted->yaml), wanted->done};
      if (calls_.push(std::move(created)) != PushResult::kOk) wanted->done(unavailable("the orchestrator is stopping"));
    } else if (const auto* unneeded = std::get_if<SweepJob>(&*job)) {
      sweep(*unneeded);
    } else {
      const auto& checkpoint = std::get<CheckpointJob>(*job);
      const StatusOr<std::string> where = write_checkpoint(*ports_.blobs, *ports_.checkpoints, checkpoint);
      calls_.push(core::Event(
          core::CheckpointWritten{checkpoint.id, where.ok(), where.ok() ? *where : message_of(where.status())}));
    }
  }
}

StatusOr<std::unique_ptr<OrchestratorNode>> OrchestratorNode::open(OrchestratorOptions options, OrchestratorPorts ports) {
  auto shell = std::make_unique<Shell>(std::move(options), ports);
  TESSERA_RETURN_IF_ERROR(shell->start());
  return std::unique_ptr<OrchestratorNode>(new OrchestratorNode(std::move(shell)));
}

OrchestratorNode::OrchestratorNode(std::unique_ptr<Shell> shell) : shell_(std::move(shell)) {}
OrchestratorNode::~OrchestratorNode() = default;

const std::string& OrchestratorNode::run_id() const { return shell_->run_id(); }
bool OrchestratorNode::is_registered(const NodeId& node) const { return shell_->is_registered(node); }

StatusOr<std::string> OrchestratorNode::run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon) {
  StatusOr<std::string> why = shell_->run(stop, abandon);
  shell_->close();
  return why;
}

void OrchestratorNode::on_register(const ports::Caller& caller, core::Registration registration,
                                   std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  shell_->enqueue(RegisterCall{caller, std::move(registration), std::move(done)});
}
void OrchestratorNode::on_sync(const ports::Caller& caller, core::SyncRequest request,
                               std::function<void(StatusOr<core::SyncAnswer>)> done) {
  shell_->enqueue(SyncCall{caller, std::move(request), std::move(done)});
}
void OrchestratorNode::on_query(const ports::Caller&, std::string topic, std::string argument,
                                std::function<void(StatusOr<std::string>)> done) {
  shell_->enqueue(QueryCall{std::move(topic), std::move(argument), std::move(done)});
}
void OrchestratorNode::on_command(const ports::Caller& caller, std::string command, std::string argument,
                                  std::function<void(StatusOr<std::string>)> done) {
  shell_->enqueue(CommandCall{caller.node, std::move(command), std::move(argument), std::move(done)});
}

}  // namespace tessera::node
