#include "apps/bench/orchestrator_host.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace tessera::apps {
namespace {

class NoBlobs final : public ports::BlobLink {
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override { return not_found("no blobs here"); }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>&) override { return not_found("no blobs here"); }
};
class NoCheckpoints final : public ports::CheckpointStore {
  StatusOr<std::string> write(const ports::Checkpoint&) override { return failed_precondition("none are kept"); }
};

core::RunSpec spec_for(const LoadOptions& load) {
  core::RunSpec spec;
  spec.name = "bench";
  spec.model = {.layers = load.stages, .width = 8, .heads = 2, .kv_heads = 2, .ffn_width = 16, .vocab = 16, .context = 4};
  spec.pipeline.stages = load.stages;
  spec.pipeline.miners_per_stage = std::min<uint32_t>(1024, load.miners / load.stages);
  spec.pipeline.max_in_flight = 64;
  spec.training.steps = 100'000'000;
  spec.boundary.codec = Codec::kInt8;
  spec.boundary.rank = 4;
  spec.merge.enabled = false;
  spec.timeouts.miner_lost_ms = 30000;
  return spec;
}

core::DataPlan data_for_bench() {
  core::DataPlan data;
  data.tokenizer = "bytes";
  data.vocab = 16;
  data.train.push_back({.file = "train-0", .tokens = 1001, .bytes = 2002, .digest = {}, .object = {}});
  return data;
}

}  // namespace

void pin_this_thread(int core, bool others) {
  if (core < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < static_cast<int>(std::thread::hardware_concurrency()); ++i) {
    if ((i == core) != others) CPU_SET(i, &set);
  }
  if (CPU_COUNT(&set) > 0) pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

StatusOr<std::unique_ptr<store::Journal>> open_bench_journal(const HostOptions& options) {
  return store::open_journal(options.directory + "/journal.sqlite");
}

StatusOr<std::unique_ptr<node::OrchestratorNode>> open_bench_node(const HostOptions& options, store::Journal& journal) {
  static NoBlobs blobs;
  static NoCheckpoints checkpoints;
  static const KeyPair key = KeyPair::generate();
  node::OrchestratorOptions wanted;
  core::RunSpec spec = spec_for(options.load);
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  wanted.spec = spec;
  wanted.data = data_for_bench();
  wanted.snapshot_events = options.snapshot_events;
  return node::OrchestratorNode::open(std::move(wanted), {&key, &journal, &blobs, &checkpoints});
}

LocalTarget::LocalTarget(const HostOptions& options, node::OrchestratorNode& node) : node_(node) {
  for (uint32_t number = 0; number < options.load.miners; ++number) nodes_.push_back(OrchestratorLoad::key_of(number).id());
  sessions_.resize(options.load.miners);
  thread_ = std::jthread([this, core = options.core] {
    pin_this_thread(core, false);
    while (!calls_.closed()) {
      if (auto call = calls_.pop(std::chrono::milliseconds(100))) (*call)();
    }
  });
}

LocalTarget::~LocalTarget() { calls_.close(); }

void LocalTarget::register_miner(uint32_t number, core::Registration registration,
                                 std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  calls_.push([this, number, registration = std::move(registration), done = std::move(done)] {
    node_.on_register({nodes_[number], "", "bench"}, registration, [this, number, done](StatusOr<core::RegisterAnswer> answer) {
      if (answer.ok()) set_session(number, answer->session);
      done(std::move(answer));
    });
  });
}

void LocalTarget::sync(uint32_t number, core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) {
  calls_.push([this, number, request = std::move(request), done = std::move(done)]() mutable {
    node_.on_sync({nodes_[number], session(number), "bench"}, std::move(request), std::move(done));
  });
}

void LocalTarget::set_session(uint32_t number, const std::string& session) {
  std::lock_guard lock(mutex_);
  sessions_[number] = session;
}

std::string LocalTarget::session(uint32_t number) {
  std::lock_guard lock(mutex_);
  return sessions_[number];
}

}  // namespace tessera::apps
