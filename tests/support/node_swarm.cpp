#include "support/node_swarm.h"

#include <future>

#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/sim/simulated_engine.h"

namespace tessera::test {

core::RunSpec node_spec(uint32_t stages, uint32_t miners_per_stage, uint64_t steps) {
  core::RunSpec spec = small_spec(stages, miners_per_stage);
  spec.pipeline.max_in_flight = 4;
  spec.training.steps = steps;
  spec.training.learning_rate = 0.05;
  spec.training.local_checkpoint_steps = 4;
  spec.merge.min_microbatches = 12;
  spec.timeouts = {
      .lease_ms = 3000, .miner_lost_ms = 300, .peer_ms = 500, .merge_phase_ms = 2000, .sync_ms = 5};
  return spec;
}

NodeSwarm::NodeSwarm(const core::RunSpec& run) : spec(run) {
  spdlog::set_level(spdlog::level::off);
}

NodeSwarm::~NodeSwarm() {
  for (size_t number = 0; number < miners_.size(); ++number) kill_miner(number);
  crash_orchestrator();
}

Status NodeSwarm::open_orchestrator(std::optional<ports::Checkpoint> resume_from) {
  node::OrchestratorOptions options;
  options.spec = spec;
  options.data = small_data();
  options.resume_from = std::move(resume_from);
  return open(std::move(options));
}

Status NodeSwarm::open_orchestrator_without_run(
    std::function<StatusOr<node::NewRun>(const std::string&)> prepare) {
  node::OrchestratorOptions options;
  options.prepare_run = std::move(prepare);
  return open(std::move(options));
}

Status NodeSwarm::open(node::OrchestratorOptions options) {
  options.admins = {admin.id()};
  options.validators = {validator.id()};
  options.exit_when_over = true;
  TESSERA_ASSIGN_OR_RETURN(
      orchestrator_,
      node::OrchestratorNode::open(std::move(options), {&orchestrator_key, journal.get(), &blobs, &checkpoints}));
  stop_ = abandon_ = false;
  orchestrator_result_.reset();
  orchestrator_thread_ =
      std::jthread([this] { orchestrator_result_ = orchestrator_->run(stop_, abandon_); });
  network.serve_orchestrator(orchestrator_.get());
  return ok_status();
}

void NodeSwarm::crash_orchestrator() {
  network.serve_orchestrator(nullptr);
  abandon_ = true;
  if (orchestrator_thread_.joinable()) orchestrator_thread_.join();
  orchestrator_.reset();
}

StatusOr<std::string> NodeSwarm::orchestrator_result() {
  if (orchestrator_thread_.joinable()) orchestrator_thread_.join();
  return *orchestrator_result_;
}

std::string NodeSwarm::query(const std::string& topic) {
  auto answer = std::make_shared<std::promise<StatusOr<std::string>>>();
  orchestrator_->on_query(
      {}, topic, "", [answer](StatusOr<std::string> text) { answer->set_value(std::move(text)); });
  const StatusOr<std::string> text = answer->get_future().get();
  return text.ok() ? *text : message_of(text.status());
}

StatusOr<std::string> NodeSwarm::command(const KeyPair& key, const std::string& what,
                                         const std::string& argument) {
  auto answer = std::make_shared<std::promise<StatusOr<std::string>>>();
  orchestrator_->on_command({key.id(), "", "here"}, what, argument, [answer](StatusOr<std::string> text) {
    answer->set_value(std::move(text));
  });
  return answer->get_future().get();
}

size_t NodeSwarm::start_miner(std::optional<StageIndex> stage, ports::BlobLink* own_blobs) {
  miners_.push_back(std::make_unique<RunningMiner>());
  miners_.back()->stage = stage;
  miners_.back()->blobs = own_blobs == nullptr ? &blobs : own_blobs;
  begin(miners_.size() - 1);
  return miners_.size() - 1;
}

void NodeSwarm::begin(size_t number) {
  RunningMiner& miner = *miners_[number];
  if (!miner.folder) miner.folder = std::make_unique<TemporaryFolder>();  // survives a restart
  miner.orchestrator = network.orchestrator_link(miner.key.id());
  miner.peers = network.peer_link(miner.key.id(), address(number));
  miner.donors = network.donor_links(address(number));
  miner.tokens = std::make_unique<CountingTokens>(spec.model.vocab);
  miner.stop = false;
  node::MinerOptions options;
  options.registration.node = miner.key.id();
  options.registration.incarnation = random_u64();
  options.registration.address = address(number);
  options.registration.device = "none";
  options.registration.wanted_stage = miner.stage;
  options.key = &miner.key;
  options.directory = miner.folder->path();
  options.make_engine = [wrap = wrap_engine](const core::RunSpec& run,
                                             StageIndex stage) -> StatusOr<std::unique_ptr<ports::StageEngine>> {
    std::unique_ptr<ports::StageEngine> engine = std::make_unique<sim::SimulatedEngine>(run, stage);
    return wrap ? wrap(std::move(engine), run) : std::move(engine);
  };
  miner.node = std::make_unique<node::MinerNode>(
      std::move(options), node::MinerLinks{miner.orchestrator.get(), miner.peers.get(), miner.blobs,
                                           miner.tokens.get(), miner.donors.get()});
  network.serve_peer(address(number), miner.node.get());
  miner.thread = std::jthread([&miner] { miner.result = miner.node->run(miner.stop); });
}

void NodeSwarm::end(size_t number) {
  RunningMiner& miner = *miners_[number];
  if (miner.thread.joinable()) miner.thread.join();
  network.serve_peer(address(number), nullptr);
  miner.node.reset();
}

void NodeSwarm::kill_miner(size_t number) {
  network.serve_peer(address(number), nullptr);
  network.cut(address(number), true);
  miners_[number]->orchestrator->kill();
  end(number);
  network.cut(address(number), false);
}

void NodeSwarm::restart_miner(size_t number) { begin(number); }

StatusOr<std::string> NodeSwarm::miner_result(size_t number) {
  end(number);
  return *miners_[number]->result;
}

void NodeSwarm::start_all() {
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    for (uint32_t replica = 0; replica < spec.pipeline.miners_per_stage; ++replica) start_miner(s);
  }
}

std::string NodeSwarm::stage_state(size_t number) const {
  const StatusOr<std::string> bytes = read_file(*miners_[number]->folder / "stage_state.bin");
  return bytes.ok() ? *bytes : "";
}

}  // namespace tessera::test
