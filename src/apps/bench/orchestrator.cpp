// tessera-bench orchestrator: the real control loop, journal and checks of signatures under the load of many miners, in one
// process, or an orchestrator at an address under the same load over gRPC.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "apps/bench/bench.h"
#include "apps/bench/orchestrator_load.h"
#include "apps/common/daemon.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/net/grpc_logging.h"
#include "tessera/net/links.h"
#include "tessera/node/orchestrator_node.h"
#include "tessera/store/journal.h"

namespace tessera::apps {
namespace {

struct Options {
  LoadOptions load;
  uint32_t seconds = 30;
  int core = -1;
  uint64_t snapshot_events = node::OrchestratorOptions().snapshot_events;
  std::string directory, connect, json;
};

// Blobs and checkpoints are not part of this load.
class NoBlobs final : public ports::BlobLink {
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>&) override { return not_found("no blobs here"); }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>&) override { return not_found("no blobs here"); }
};
class NoCheckpoints final : public ports::CheckpointStore {
  StatusOr<std::string> write(const ports::Checkpoint&) override { return failed_precondition("none are kept"); }
};

// Only `core`, or, for its counterpart, every other one. Nothing where a core is not asked for.
void pin_this_thread(int core, bool others) {
  if (core < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < static_cast<int>(std::thread::hardware_concurrency()); ++i) {
    if ((i == core) != others) CPU_SET(i, &set);
  }
  if (CPU_COUNT(&set) > 0) pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

double cpu_seconds(pthread_t thread) {
  clockid_t clock = 0;
  timespec time{};
  if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

core::RunSpec spec_for(const Options& options) {
  core::RunSpec spec;
  spec.name = "bench";
  spec.model = {.layers = options.load.stages, .width = 8, .heads = 2, .kv_heads = 2, .ffn_width = 16, .vocab = 16, .context = 4};
  spec.pipeline.stages = options.load.stages;
  spec.pipeline.miners_per_stage = std::min<uint32_t>(1024, options.load.miners / options.load.stages);
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

// The server's side of a call: what gRPC's threads do in the product, on one thread of the orchestrator's core.
class LocalTarget final : public LoadTarget {
 public:
  LocalTarget(const LoadOptions& options, node::OrchestratorNode& node, int core) : node_(node) {
    for (uint32_t number = 0; number < options.miners; ++number) nodes_.push_back(OrchestratorLoad::key_of(number).id());
    sessions_.resize(options.miners);
    thread_ = std::jthread([this, core] {
      pin_this_thread(core, false);
      while (!calls_.closed()) {
        if (auto call = calls_.pop(std::chrono::milliseconds(100))) (*call)();
      }
    });
  }
  ~LocalTarget() override { calls_.close(); }
  pthread_t thread() { return thread_.native_handle(); }

  void register_miner(uint32_t number, core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override {
    calls_.push([this, number, registration = std::move(registration), done = std::move(done)] {
      node_.on_register({nodes_[number], "", "bench"}, registration,
                        [this, number, done](StatusOr<core::RegisterAnswer> answer) {
                          if (answer.ok()) set_session(number, answer->session);
                          done(std::move(answer));
                        });
    });
  }
  void sync(uint32_t number, core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) override {
    calls_.push([this, number, request = std::move(request), done = std::move(done)]() mutable {
      node_.on_sync({nodes_[number], session(number), "bench"}, std::move(request), std::move(done));
    });
  }

 private:
  void set_session(uint32_t number, const std::string& session) {
    std::lock_guard lock(mutex_);
    sessions_[number] = session;
  }
  std::string session(uint32_t number) {
    std::lock_guard lock(mutex_);
    return sessions_[number];
  }

  node::OrchestratorNode& node_;
  std::vector<NodeId> nodes_;
  std::mutex mutex_;
  std::vector<std::string> sessions_;
  BoundedQueue<std::function<void()>> calls_{1u << 20};
  std::jthread thread_;
};

class GrpcTarget final : public LoadTarget {
 public:
  static StatusOr<std::unique_ptr<GrpcTarget>> create(const Options& options) {
    auto target = std::make_unique<GrpcTarget>();
    for (uint32_t number = 0; number < options.load.miners; ++number) {
      auto signer = std::make_shared<net::RequestSigner>(OrchestratorLoad::key_of(number));
      TESSERA_ASSIGN_OR_RETURN(auto link, net::GrpcOrchestratorLink::create({.orchestrator = options.connect,
                                                                             .signer = std::move(signer),
                                                                             .software = version(),
                                                                             .expected_orchestrator = {},
                                                                             .timeout_ms = 2000}));
      target->links_.push_back(std::move(link));
    }
    return target;
  }
  void register_miner(uint32_t number, core::Registration registration,
                      std::function<void(StatusOr<core::RegisterAnswer>)> done) override {
    links_[number]->register_miner(std::move(registration), std::move(done));
  }
  void sync(uint32_t number, core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) override {
    links_[number]->sync(std::move(request), std::move(done));
  }

 private:
  std::vector<std::unique_ptr<net::GrpcOrchestratorLink>> links_;
};

float percentile(std::vector<float>& sorted, double share) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1, static_cast<size_t>(share * static_cast<double>(sorted.size())))];
}

nlohmann::json report_of(const Options& options, LoadFigures& figures, double seconds) {
  std::sort(figures.answer_ms.begin(), figures.answer_ms.end());
  return {{"miners", options.load.miners},
          {"stages", options.load.stages},
          {"seconds", seconds},
          {"reports_per_second", static_cast<double>(figures.answer_ms.size()) / seconds},
          {"receipts_per_second", static_cast<double>(figures.receipts) / seconds},
          {"leases_per_second", static_cast<double>(figures.leases) / seconds},
          {"answer_p50_ms", percentile(figures.answer_ms, 0.5)},
          {"answer_p99_ms", percentile(figures.answer_ms, 0.99)},
          {"answer_max_ms", figures.answer_ms.empty() ? 0 : figures.answer_ms.back()},
          {"skipped", figures.skipped},
          {"failures", figures.failures},
          {"registrations", figures.registrations},
          {"forgotten", figures.forgotten}};
}

void print_report(const nlohmann::json& report) {
  for (const auto& [name, value] : report.items()) {
    if (value.is_number_float()) {
      std::printf("%-28s %14.3f\n", name.c_str(), value.get<double>());
    } else if (!value.is_array()) {
      std::printf("%-28s %14s\n", name.c_str(), value.dump().c_str());
    }
  }
}

uint64_t journal_bytes(const std::string& folder) {
  uint64_t bytes = 0;
  for (const char* suffix : {"", "-wal"}) {
    std::error_code none;
    const auto size = std::filesystem::file_size(folder + "/journal.sqlite" + suffix, none);
    if (!none) bytes += size;
  }
  return bytes;
}

StatusOr<std::unique_ptr<node::OrchestratorNode>> open_node(const Options& options, store::Journal& journal) {
  static NoBlobs blobs;
  static NoCheckpoints checkpoints;
  static const KeyPair key = KeyPair::generate();
  node::OrchestratorOptions wanted;
  core::RunSpec spec = spec_for(options);
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  wanted.spec = spec;
  wanted.data = data_for_bench();
  wanted.snapshot_events = options.snapshot_events;
  return node::OrchestratorNode::open(std::move(wanted), {&key, &journal, &blobs, &checkpoints});
}

// The load runs on this thread, on the other cores.
StatusOr<nlohmann::json> measure(const Options& options, const std::string& folder) {
  const uint64_t resident_before = resident_bytes();
  std::unique_ptr<node::OrchestratorNode> node;
  std::unique_ptr<store::Journal> journal;
  std::atomic<bool> stop{false}, abandon{false};
  Status ended;
  {
    TESSERA_ASSIGN_OR_RETURN(journal, store::open_journal(folder + "/journal.sqlite"));
    TESSERA_ASSIGN_OR_RETURN(node, open_node(options, *journal));
  }
  std::jthread control([&] {
    pin_this_thread(options.core, false);
    ended = node->run(stop, abandon).status();
  });
  nlohmann::json report;
  {
    LocalTarget target(options.load, *node, options.core);
    pin_this_thread(options.core, true);
    OrchestratorLoad load(options.load, target);
    const bool joined = load.join(std::chrono::seconds(300));
    load.run(std::chrono::seconds(5));  // until work is under way everywhere
    load.figures.clear();
    const double cpu_before = cpu_seconds(control.native_handle()) + cpu_seconds(target.thread());
    const double control_before = cpu_seconds(control.native_handle());
    const uint64_t journal_before = journal_bytes(folder);
    const auto begin = std::chrono::steady_clock::now();
    load.run(std::chrono::seconds(options.seconds));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    report = report_of(options, load.figures, seconds);
    report["orchestrator_cores"] = (cpu_seconds(control.native_handle()) + cpu_seconds(target.thread()) - cpu_before) / seconds;
    report["control_thread_cores"] = (cpu_seconds(control.native_handle()) - control_before) / seconds;
    report["journal_bytes_per_second"] = static_cast<double>(journal_bytes(folder) - journal_before) / seconds;
    report["resident_bytes_per_miner"] = (resident_bytes() - resident_before) / options.load.miners;
    load.settle(std::chrono::seconds(10));
    if (!joined) return unavailable("not every miner was ready within 300 s");
  }
  abandon = true;
  control.join();
  TESSERA_RETURN_IF_ERROR(ended);
  node.reset();
  report["journal_entries"] = journal->last_sequence();
  journal.reset();
  const auto begin = std::chrono::steady_clock::now();
  TESSERA_ASSIGN_OR_RETURN(journal, store::open_journal(folder + "/journal.sqlite"));
  TESSERA_ASSIGN_OR_RETURN(node, open_node(options, *journal));
  report["restart_s"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

Status run_here(const Options& options) {
  start_logging({.name = "bench", .file = "", .level = "error"});
  std::string folder = options.directory;
  if (folder.empty()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "tessera-bench-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) return internal_error("{}: can't make a folder there", pattern);
    folder = pattern;
  }
  TESSERA_RETURN_IF_ERROR(make_directories(folder));
  const StatusOr<nlohmann::json> report = measure(options, folder);
  if (options.directory.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  TESSERA_RETURN_IF_ERROR(report.status());
  print_report(*report);
  return write_report(options.json, *report);
}

Status run_against(const Options& options) {
  start_logging({.name = "bench", .file = "", .level = "error"});
  net::quiet_grpc_logging();
  TESSERA_ASSIGN_OR_RETURN(const auto target, GrpcTarget::create(options));
  OrchestratorLoad load(options.load, *target);
  if (!load.join(std::chrono::seconds(120))) return unavailable("not every miner was ready within 120 s");
  StopFlags& signals = catch_signals();
  load.figures.clear();
  const auto begin = std::chrono::steady_clock::now();
  load.run(std::chrono::seconds(options.seconds), [&] { return signals.stop.load(); });
  load.settle(std::chrono::seconds(5));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  nlohmann::json report = report_of(options, load.figures, seconds);
  for (const Acknowledged& entry : load.acknowledged()) {
    report["acknowledged"].push_back({{"miner", entry.miner},
                                      {"incarnation", entry.incarnation},
                                      {"receipts", entry.receipts},
                                      {"lease_request", entry.lease_request}});
  }
  print_report(report);
  return write_report(options.json, report);
}

}  // namespace

void add_orchestrator_bench(CLI::App* app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand("orchestrator", "The control plane under the load of many simulated miners");
  command->add_option("--miners", options->load.miners, "Simulated miners")->check(CLI::Range(1, 100000));
  command->add_option("--stages", options->load.stages, "Stages of the run")->check(CLI::Range(1, 64));
  command->add_option("--heartbeat-hz", options->load.heartbeat_hz, "Reports a second of each miner")->check(CLI::Range(0.01, 100.0));
  command->add_option("--receipts-per-second", options->load.receipts_per_second, "Of all miners")->check(CLI::Range(0.0, 1e6));
  command->add_option("--work-ms", options->load.work_ms, "Time of a microbatch at a stage")->check(CLI::Range(1, 60000));
  command->add_option("--seconds", options->seconds, "Length of the measurement")->check(CLI::Range(1, 86400));
  command->add_option("--core", options->core, "Keep the orchestrator's threads on this core and the load off it");
  command->add_option("--snapshot-events", options->snapshot_events, "Journal entries between two snapshots; 0: none");
  command->add_option("--directory", options->directory, "Keep the journal here instead of a temporary folder");
  command->add_option("--connect", options->connect, "Load the orchestrator at this address instead, over gRPC");
  command->add_option("--json", options->json, "Write the figures here");
  on_call(command, [options] {
    if (options->load.miners < options->load.stages) return invalid_argument("--miners: every stage needs one");
    return options->connect.empty() ? run_here(*options) : run_against(*options);
  });
}

}  // namespace tessera::apps
