#include "simulated_orchestrator.h"

#include <algorithm>

#include "simulated_miner.h"
#include "tessera/core/invariants.h"

namespace tessera::sim {
namespace {

constexpr TimeUs kJobUs = 20000;                // of a recomputation or checkpoint
constexpr TimeUs kSweepUs = 60000000;
constexpr size_t kMaxWaitingCalls = 65536;
constexpr uint32_t kOperatorNode = UINT32_MAX;  // whose key gives orders

// One shard of windows that nobody reads, long enough for any context.
core::DataPlan simulated_data(const core::RunSpec& spec) {
  core::DataPlan data;
  data.tokenizer = "bytes";
  data.vocab = spec.model.vocab;
  data.train.push_back({.file = "simulated",
                        .tokens = 1000 * (uint64_t{spec.model.context} + 1),
                        .bytes = 2000 * (uint64_t{spec.model.context} + 1),
                        .digest = {},
                        .object = {}});
  return data;
}

}  // namespace

SimulatedOrchestrator::SimulatedOrchestrator(World& world)
    : world_(world),
      journal_(world.sim.keep_journal, world.sim.check),
      jobs_(world.blobs, checkpoints_,
            [&world](const std::set<Digest>& keep, TimeMs, uint64_t) { return world.blobs.sweep(keep); }, nullptr) {
  journal_.watcher = [this](const ports::JournalRecord& record) {
    world_.trace.line("journal {} {} {}", record.sequence, record.kind,
                      digest_of(record.body).brief());
  };
}

node::OrchestratorOptions SimulatedOrchestrator::options() const {
  node::OrchestratorOptions options;
  options.spec = world_.spec;
  options.data = simulated_data(world_.spec);
  options.journal_json = false;
  options.admins = {key_of_node(kOperatorNode)};
  options.snapshot_events = world_.sim.snapshot_events;
  return options;
}

node::OrchestratorSurroundings SimulatedOrchestrator::surroundings() {
  return {.unix_ms = [this] { return kUnixEpochMs + world_.queue.now_ms(); },
          .monotonic_ms = [this] { return world_.queue.now_ms(); },
          .random_bytes = [this](size_t size) { return world_.random_bytes(size); },
          .key = key_of_node(kOrchestratorNode),
          .sign = [](std::string_view bytes) { return sign_as(key_of_node(kOrchestratorNode), bytes); },
          .verify = is_signed_by,
          .start =
              [this](node::OrchestratorJob job) {
                job_queue_.push_back(std::move(job));
                if (!job_runs_) start_job();
                return true;
              },
          .registered = [](const NodeId&, const node::BlobShare&) {},
          .blobs_asked = [](const NodeId&, uint64_t) {},
          .forgotten = [](const NodeId&) {}};
}

Status SimulatedOrchestrator::start() {
  TESSERA_CHECK(!control_);
  ++generation_;
  asked_.clear();
  job_queue_.clear();
  commit_is_due_ = job_runs_ = false;
  control_ = std::make_unique<node::OrchestratorControl>(options(), journal_, surroundings());
  world_.trace.line("boot {}", generation_);
  TESSERA_RETURN_IF_ERROR(control_->open(world_.blobs));
  world_.queue.push(world_.queue.now_us() + tick_us(), EventKind::kOrchestratorTick,
                    kOrchestratorNode, generation_);
  return ok_status();
}

// What was not committed is forgotten, and nobody has heard of it.
void SimulatedOrchestrator::crash(TimeUs restart_us) {
  world_.trace.line("crash {}", generation_);
  last_state_ = control_->state();
  control_.reset();
  for (const Asked& asked : asked_) {
    Message message{.from = asked.node,
                    .to = kOrchestratorNode,
                    .from_generation = asked.generation,
                    .to_generation = 0,
                    .id = asked.call,
                    .bytes = 0,
                    .body = core::SyncRequest{}};
    if (asked.registration) message.body = core::Registration{};
    SimulatedMiner::refuse(world_, message);
  }
  asked_.clear();
  world_.queue.push(restart_us, EventKind::kBoot, kOrchestratorNode, generation_);
}

template <class Answer>
void SimulatedOrchestrator::answer(const Asked& asked, StatusOr<Answer> value) {
  std::erase_if(asked_, [&](const Asked& other) {
    return other.node == asked.node && other.generation == asked.generation &&
           other.call == asked.call;
  });
  world_.send({.from = kOrchestratorNode,
               .to = asked.node,
               .from_generation = generation_,
               .to_generation = asked.generation,
               .id = asked.call,
               .bytes = 0,
               .body = std::move(value)});
}

Status SimulatedOrchestrator::receive(Message message) {
  const Asked asked{message.from, message.from_generation, message.id,
                    std::holds_alternative<core::Registration>(message.body)};
  world_.trace.line("{} {} call {}", asked.registration ? "register" : "sync", asked.node,
                    asked.call);
  asked_.push_back(asked);
  if (asked_.size() > kMaxWaitingCalls) {
    return error(absl::StatusCode::kResourceExhausted,
                 "more than {} calls wait for the orchestrator's journal: lower "
                 "sim.commit_ms, or let miners report less often",
                 kMaxWaitingCalls);
  }
  ports::Caller caller{key_of_node(message.from), std::move(message.session), fmt::format("node-{}:1", message.from)};
  if (asked.registration) {
    TESSERA_RETURN_IF_ERROR(control_->handle(node::RegisterCall{
        std::move(caller), std::move(std::get<core::Registration>(message.body)),
        [this, asked](StatusOr<core::RegisterAnswer> value) { answer(asked, std::move(value)); }}));
  } else {
    TESSERA_RETURN_IF_ERROR(control_->handle(node::SyncCall{
        std::move(caller), std::move(std::get<core::SyncRequest>(message.body)),
        [this, asked](StatusOr<core::SyncAnswer> value) { answer(asked, std::move(value)); }}));
  }
  commit_later();
  return ok_status();
}

Status SimulatedOrchestrator::order(const std::string& command, const std::string& argument) {
  const auto answered = [this, command](const StatusOr<std::string>& answer) {
    world_.trace.line("order {} {}", command, answer.ok());
    orders_obeyed_ += answer.ok();
  };
  TESSERA_RETURN_IF_ERROR(control_->handle(
      node::CommandCall{key_of_node(kOperatorNode), command, argument, answered}));
  commit_later();
  return ok_status();
}

// All that comes until the journal has taken this shares its transaction.
void SimulatedOrchestrator::commit_later() {
  if (commit_is_due_ || !control_->uncommitted()) return;
  commit_is_due_ = true;
  world_.queue.push(world_.queue.now_us() + us_of_ms(world_.sim.commit_ms), EventKind::kCommit,
                    kOrchestratorNode, generation_);
}

void SimulatedOrchestrator::start_job() {
  job_runs_ = true;
  world_.queue.push(world_.queue.now_us() + kJobUs, EventKind::kJobDone, kOrchestratorNode,
                    generation_);
}

Status SimulatedOrchestrator::handle(const Event& event) {
  switch (event.kind) {
    case EventKind::kOrchestratorTick:
      TESSERA_RETURN_IF_ERROR(control_->watch_time());
      if (world_.queue.now_us() - swept_at_us_ >= kSweepUs) {
        swept_at_us_ = world_.queue.now_us();
        jobs_.run(node::make_sweep_job(control_->state()));
      }
      world_.queue.push(world_.queue.now_us() + tick_us(), EventKind::kOrchestratorTick,
                        kOrchestratorNode, generation_);
      break;
    case EventKind::kCommit:
      commit_is_due_ = false;
      TESSERA_RETURN_IF_ERROR(control_->commit());
      break;
    case EventKind::kJobDone: {
      const node::OrchestratorJob job = std::move(job_queue_.front());
      job_queue_.pop_front();
      job_runs_ = false;
      if (!job_queue_.empty()) start_job();
      if (std::optional<node::OrchestratorJobResult> result = jobs_.run(job)) {
        TESSERA_RETURN_IF_ERROR(
            std::visit([this](auto& done) { return control_->handle(std::move(done)); }, *result));
      }
      break;
    }
    default:
      TESSERA_CHECK(false && "no event of the orchestrator");
  }
  commit_later();
  return ok_status();
}

bool SimulatedOrchestrator::is_done(MicrobatchId microbatch) const {
  return microbatch < state().next_microbatch && state().open.count(microbatch) == 0;
}

std::string SimulatedOrchestrator::replay_problem() {
  if (!control_) return "";
  if (const Status status = control_->commit(); !status.ok()) return message_of(status);
  if (!journal_.broken().empty()) return journal_.broken();
  const std::string present = core::dump(state());
  if (journal_.mirror() != nullptr && core::dump(journal_.mirror()->state()) != present) {
    return "the state is not the replay of the journal";
  }
  if (!journal_.keeps() || journal_.mirror() != nullptr) return "";
  core::Orchestrator again;
  const Status status = journal_.replay(0, [&](const ports::JournalRecord& record) -> Status {
    if (record.kind == ports::kSnapshotKind) return ok_status();
    const std::optional<core::Event> event = core::decode_event(record.kind, record.body);
    if (!event) return data_loss("journal entry {} can't be read back", record.sequence);
    again.step(record.unix_ms, *event);
    return ok_status();
  });
  if (!status.ok()) return message_of(status);
  return core::dump(again.state()) == present ? "" : "the state is not the replay of the journal";
}

}  // namespace tessera::sim
