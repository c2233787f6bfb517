// The clock: takes one event after the other and gives it to whom it concerns.
#include "tessera/sim/simulation.h"

#include <algorithm>
#include <bit>

#include "faults.h"
#include "simulated_miner.h"
#include "simulated_orchestrator.h"
#include "tessera/core/invariants.h"
#include "tessera/node/objects.h"

namespace tessera::sim {
namespace {

constexpr int kSamples = 200;
constexpr uint64_t kStopCheckEvery = 1024;
constexpr TimeUs kLongestAbsenceUs = 10000000;  // of a miner that backs off
constexpr uint64_t kGigabyte = 1u << 30;

}  // namespace

class Simulation::Swarm {
 public:
  explicit Swarm(const config::Scenario& scenario)
      : world_(scenario), orchestrator_(world_), faults_(world_, orchestrator_, miners_) {}

  Status begin(const std::string& trace_path);
  Status run(const std::atomic<bool>& stop,
             const std::function<void(const Progress&)>& on_progress);
  StatusOr<Result> result();
  const core::OrchestratorState& state() const { return orchestrator_.state(); }

 private:
  void add_miner(std::optional<StageIndex> stage, uint32_t number, TimeUs start_us);
  Status dispatch(const Event& event);
  Status to_miner(const Event& event);
  Status deliver(const Event& event);
  uint64_t gradients_at_stake(uint32_t node) const;
  bool finished() const;
  std::string problem();
  std::string replica_problem() const;
  void count(Result* result) const;

  World world_;
  SimulatedOrchestrator orchestrator_;
  std::vector<std::unique_ptr<SimulatedMiner>> miners_;  // node n is miners_[n - 1]
  Faults faults_;
  uint32_t joined_ = 0;
};

Status Simulation::Swarm::begin(const std::string& trace_path) {
  if (!trace_path.empty()) TESSERA_RETURN_IF_ERROR(world_.trace.write_to(trace_path));
  world_.network.add_node();  // the orchestrator's
  world_.measures.is_done = [this](MicrobatchId microbatch) {
    return orchestrator_.is_done(microbatch);
  };
  world_.measures.gradients_at_stake = [this](uint32_t node) { return gradients_at_stake(node); };
  TESSERA_RETURN_IF_ERROR(orchestrator_.start());
  const core::PipelineSpec& pipeline = world_.spec.pipeline;
  for (uint32_t number = 0; number < pipeline.miners_per_stage; ++number) {
    for (StageIndex s = 0; s < pipeline.stages; ++s) {
      const double spread = world_.sim.start_spread_s * world_.random.uniform();
      add_miner(s, number, kBeginUs + us_of_s(spread));
    }
  }
  world_.owned_by_pair = [this](StageIndex stage, uint32_t shard) { return faults_.owned_by_pair(stage, shard); };
  faults_.add_miner = [this] { add_miner(std::nullopt, joined_++, world_.queue.now_us()); };
  faults_.schedule();
  world_.queue.push(kBeginUs, EventKind::kSample);
  return ok_status();
}

void Simulation::Swarm::add_miner(std::optional<StageIndex> stage, uint32_t number,
                                  TimeUs start_us) {
  const config::SimSpec& sim = world_.sim;
  MinerProfile profile;
  profile.speed = sim.speeds[number % sim.speeds.size()];
  if (!sim.memory_gib.empty()) {
    profile.memory_bytes = static_cast<uint64_t>(sim.memory_gib[number % sim.memory_gib.size()] *
                                                 static_cast<double>(kGigabyte));
  }
  profile.wanted_stage = stage;
  const auto node = static_cast<uint32_t>(miners_.size() + 1);
  world_.network.add_node();
  miners_.push_back(std::make_unique<SimulatedMiner>(world_, node, profile));
  world_.queue.push(start_us, EventKind::kStart, node, 0);
}

Status Simulation::Swarm::run(const std::atomic<bool>& stop,
                              const std::function<void(const Progress&)>& on_progress) {
  const TimeUs end = kBeginUs + us_of_s(world_.sim.duration_s);
  const TimeUs sample_us = std::max<TimeUs>(1, (end - kBeginUs) / kSamples);
  while (world_.queue.next_us() <= end && world_.broken.empty() &&
         orchestrator_.journal().broken().empty()) {
    if (world_.queue.popped() % kStopCheckEvery == 0 && stop.load()) break;
    if (world_.queue.popped() >= world_.sim.max_events) {
      return error(absl::StatusCode::kResourceExhausted,
                   "more than sim.max_events {} events; raise it, or simulate less",
                   world_.sim.max_events);
    }
    const Event event = world_.queue.pop();
    if (event.kind == EventKind::kSample) {
      const uint64_t done = state().done;
      world_.measures.sample(done);
      on_progress({static_cast<double>(event.at_us - kBeginUs) / 1e6, world_.sim.duration_s,
                   done * world_.spec.tokens_per_microbatch(), world_.queue.popped()});
      world_.queue.push(event.at_us + sample_us, EventKind::kSample);
      continue;
    }
    TESSERA_RETURN_IF_ERROR(dispatch(event));
    if (event.node == kOrchestratorNode && finished()) break;
  }
  return ok_status();
}

// What it has uploaded for the merge under way still counts.
uint64_t Simulation::Swarm::gradients_at_stake(uint32_t node) const {
  const auto known = state().by_node.find(key_of_node(node));
  if (known == state().by_node.end()) return 0;
  const core::MinerRecord& miner = state().miners[known->second];
  if (miner.registration.incarnation != miners_[node - 1]->incarnation()) return 0;
  uint64_t uploaded_through = 0;
  if (const auto& merge = state().stages[miner.stage].merge) {
    const auto upload = merge->uploads.find(miner.index);
    if (upload != merge->uploads.end()) uploaded_through = upload->second.snapshot_step;
  }
  uint64_t lost = 0;
  for (const auto& [step, count] : miner.fresh) lost += step >= uploaded_through ? count : 0;
  return lost;
}

bool Simulation::Swarm::finished() const { return state().phase == core::RunPhase::kFinished; }

Status Simulation::Swarm::dispatch(const Event& event) {
  switch (event.kind) {
    case EventKind::kArrive: {
      const Message& message = world_.messages.at(event.value);
      if (!world_.network.reach(message.from, message.to)) {
        world_.messages.take(event.value);
        return ok_status();
      }
      const TimeUs through = world_.network.delivery(event.at_us, event.node, message.bytes);
      if (through > event.at_us) {
        world_.queue.push(through, EventKind::kDeliver, event.node, 0, event.value);
        return ok_status();
      }
      return deliver(event);
    }
    case EventKind::kDeliver:
      return deliver(event);
    case EventKind::kFault:
    case EventKind::kFaultOver:
    case EventKind::kFaultsEnd:
      return faults_.handle(event);
    case EventKind::kBoot:
      return orchestrator_.up() ? ok_status() : orchestrator_.start();
    case EventKind::kStart:
      if (SimulatedMiner& miner = *miners_[event.node - 1];
          !miner.alive() && miner.generation() == event.generation) {
        miner.start();
      }
      return ok_status();
    default:
      break;
  }
  if (event.node != kOrchestratorNode) return to_miner(event);
  if (!orchestrator_.up() || orchestrator_.generation() != event.generation) return ok_status();
  TESSERA_RETURN_IF_ERROR(orchestrator_.handle(event));
  faults_.strike_merges();
  return ok_status();
}

Status Simulation::Swarm::to_miner(const Event& event) {
  SimulatedMiner& miner = *miners_[event.node - 1];
  if (!miner.alive() || miner.generation() != event.generation) return ok_status();
  if (miner.frozen()) {
    Event later = event;
    later.at_us = miner.frozen_until_us();
    world_.queue.push(later);
  } else {
    miner.handle(event);
  }
  return ok_status();
}

Status Simulation::Swarm::deliver(const Event& event) {
  const Message& peek = world_.messages.at(event.value);
  const bool to_orchestrator = event.node == kOrchestratorNode;
  SimulatedMiner* miner = to_orchestrator ? nullptr : miners_[event.node - 1].get();
  const bool there = to_orchestrator ? orchestrator_.up() : miner->alive();
  if (there && miner != nullptr && miner->frozen()) {  // its system keeps it
    Event later = event;
    later.kind = EventKind::kDeliver;
    later.at_us = miner->frozen_until_us();
    world_.queue.push(later);
    return ok_status();
  }
  if (!world_.network.reach(peek.from, peek.to)) {
    world_.messages.take(event.value);
    return ok_status();
  }
  Message message = world_.messages.take(event.value);
  if (!there) {
    if (!message.is_answer()) SimulatedMiner::refuse(world_, message);
    return ok_status();
  }
  if (miner != nullptr) {
    miner->receive(std::move(message));
    return ok_status();
  }
  TESSERA_RETURN_IF_ERROR(orchestrator_.receive(std::move(message)));
  faults_.strike_merges();
  return ok_status();
}

// Every live replica that is at its stage's epoch must hold the stage's base.
std::string Simulation::Swarm::replica_problem() const {
  for (const core::MinerRecord& record : state().miners) {
    if (!record.live || !record.ready) continue;
    const core::StageRecord& stage = state().stages[record.stage];
    if (record.epoch != stage.epoch) {
      if (finished() && record.checkpoint)
        return fmt::format("miner {} is in the checkpoint and behind its stage", record.index);
      continue;
    }
    const SimulatedMiner& miner = *miners_[node_of_key(record.registration.node) - 1];
    const node::BackgroundJobs* jobs = miner.background_jobs();
    if (!miner.alive() || miner.incarnation() != record.registration.incarnation ||
        jobs == nullptr || jobs->epoch() != record.epoch) {
      continue;
    }
    const StatusOr<Digest> held = node::name_stage_state(*jobs->base(), jobs->momentum());
    if (!held.ok() || *held != stage.state)
      return fmt::format("miner {} holds another base than its stage", record.index);
  }
  return "";
}

std::string Simulation::Swarm::problem() {
  if (!world_.broken.empty()) return world_.broken;
  if (std::string broken = orchestrator_.replay_problem(); !broken.empty()) return broken;
  if (!orchestrator_.up()) return "";
  if (std::string broken = core::broken_invariant(state()); !broken.empty()) return broken;
  if (finished() && (state().done != world_.spec.total_microbatches() || !state().open.empty())) {
    return "the run is finished, and not every microbatch is done";
  }
  // The last checkpoint is given up after four phases of a merge. Who was away for longer, waiting
  // to try its registration again, may have missed it: nobody, when nothing fails.
  const TimeUs ending = kLongestAbsenceUs + us_of_ms(4.0 * world_.spec.timeouts.merge_phase_ms);
  const bool had_quiet =
      world_.sim.faults.empty() ||
      (world_.faults_over && world_.queue.now_us() - world_.faults_over_us > ending);
  for (const core::StageRecord& stage : state().stages) {
    if (had_quiet && finished() && !stage.state_published)
      return "a stage's last state was not published";
    if (stage.replica_mismatches > 0) return "replicas computed different bases";
  }
  return replica_problem();
}

void Simulation::Swarm::count(Result* result) const {
  const core::OrchestratorState& state = orchestrator_.state();
  uint64_t gradients = 0;
  for (const core::MinerRecord& miner : state.miners) gradients += miner.counted;
  uint64_t allowed = state.done * state.stages.size();
  for (const auto& [id, open] : state.open)
    allowed += static_cast<uint64_t>(std::popcount(open.counted_stages));
  result->microbatches_done = state.done;
  result->microbatches_open = state.open.size();
  result->microbatches_lost =
      state.next_microbatch - std::min(state.next_microbatch, state.done + state.open.size());
  result->microbatches_double_counted = gradients - std::min(gradients, allowed);
  result->gradients_refused = state.double_counted;
  result->leases_reissued = state.reissued;
  result->orders_obeyed = orchestrator_.orders_obeyed();
  result->moves = state.moves;
  result->stage_values = state.stages.empty() ? 0 : state.stages.front().values;
  for (const core::StageRecord& stage : state.stages) {
    result->merges += stage.merges;
    result->merges_aborted += stage.merges_aborted;
    result->shards_recomputed += stage.shards_recomputed;
    result->replica_mismatches += stage.replica_mismatches;
  }
}

StatusOr<Result> Simulation::Swarm::result() {
  Result result;
  result.name = world_.spec.name;
  result.seed = world_.sim.seed;
  result.simulated_s = static_cast<double>(world_.queue.now_us() - kBeginUs) / 1e6;
  result.problem = problem();
  result.state_is_replay = result.problem.find("replay") == std::string::npos;
  result.phase = core::name_of(state().phase);
  count(&result);
  world_.measures.fill(&result, state().done);
  faults_.fill(&result);
  result.events = world_.queue.popped();
  result.journal_entries = orchestrator_.journal().last_sequence();
  result.trace_lines = world_.trace.lines();
  TESSERA_ASSIGN_OR_RETURN(result.trace_sha256, world_.trace.finish());
  return result;
}

Simulation::Simulation(std::unique_ptr<Swarm> swarm) : swarm_(std::move(swarm)) {}
Simulation::~Simulation() = default;

StatusOr<std::unique_ptr<Simulation>> Simulation::create(const config::Scenario& scenario,
                                                         const std::string& trace_path) {
  auto swarm = std::make_unique<Swarm>(scenario);
  TESSERA_RETURN_IF_ERROR(swarm->begin(trace_path));
  return std::unique_ptr<Simulation>(new Simulation(std::move(swarm)));
}

Status Simulation::run(const std::atomic<bool>& stop,
                       const std::function<void(const Progress&)>& on_progress) {
  return swarm_->run(stop, on_progress);
}

const core::OrchestratorState& Simulation::state() const { return swarm_->state(); }
StatusOr<Result> Simulation::result() { return swarm_->result(); }

}  // namespace tessera::sim
