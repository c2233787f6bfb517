// tessera-bench orchestrator: the real control loop, journal and checks of signatures under the load of many miners, in one
// process; the same in a process that is killed again and again; or an orchestrator at an address under that load over gRPC.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "apps/bench/bench.h"
#include "apps/bench/orchestrator_host.h"
#include "apps/bench/orchestrator_process.h"
#include "apps/common/daemon.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/base/prng.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

constexpr uint64_t kKillSeed = 1;
constexpr uint64_t kShortestPauseMs = 300, kLongestPauseMs = 2300;  // before a kill
constexpr int kLongestRestartS = 60;
constexpr int kLongestReturnS = 60;  // of all miners

struct Options : HostOptions {
  uint32_t seconds = 30;
  std::string connect, json;
  uint32_t kills = 0;
  int serve = -1;  // in the process that is killed: the socket to the one that loads it
};

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

// The load runs on this thread, on the other cores.
StatusOr<nlohmann::json> measure(const Options& options) {
  const uint64_t resident_before = resident_bytes();
  std::unique_ptr<node::OrchestratorNode> node;
  std::unique_ptr<store::Journal> journal;
  std::atomic<bool> stop{false}, abandon{false};
  Status ended;
  {
    TESSERA_ASSIGN_OR_RETURN(journal, open_bench_journal(options));
    TESSERA_ASSIGN_OR_RETURN(node, open_bench_node(options, *journal));
  }
  std::jthread control([&] {
    pin_this_thread(options.core, false);
    ended = node->run(stop, abandon).status();
  });
  nlohmann::json report;
  {
    LocalTarget target(options, *node);
    pin_this_thread(options.core, true);
    OrchestratorLoad load(options.load, target);
    const bool joined = load.join(std::chrono::seconds(300));
    load.run(std::chrono::seconds(5));  // until work is under way everywhere
    load.figures.clear();
    const double cpu_before = cpu_seconds(control.native_handle()) + cpu_seconds(target.thread());
    const double control_before = cpu_seconds(control.native_handle());
    const uint64_t journal_before = journal_bytes(options.directory);
    const auto begin = std::chrono::steady_clock::now();
    load.run(std::chrono::seconds(options.seconds));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    report = report_of(options, load.figures, seconds);
    report["orchestrator_cores"] = (cpu_seconds(control.native_handle()) + cpu_seconds(target.thread()) - cpu_before) / seconds;
    report["control_thread_cores"] = (cpu_seconds(control.native_handle()) - control_before) / seconds;
    report["journal_bytes_per_second"] = static_cast<double>(journal_bytes(options.directory) - journal_before) / seconds;
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
  TESSERA_ASSIGN_OR_RETURN(journal, open_bench_journal(options));
  TESSERA_ASSIGN_OR_RETURN(node, open_bench_node(options, *journal));
  report["restart_s"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

nlohmann::json acknowledged_by(const OrchestratorLoad& load) {
  nlohmann::json list = nlohmann::json::array();
  for (const Acknowledged& entry : load.acknowledged()) {
    list.push_back({{"miner", entry.miner},
                    {"incarnation", entry.incarnation},
                    {"receipts", entry.receipts},
                    {"lease_request", entry.lease_request}});
  }
  return list;
}

// The same load on an orchestrator in a process of its own, which is killed again and again: in turn some time after all its
// miners are back, and some time after it began to serve. The load does not pause meanwhile.
StatusOr<nlohmann::json> measure_kills(const Options& options) {
  TESSERA_ASSIGN_OR_RETURN(const auto process, OrchestratorProcess::create(options));
  OrchestratorLoad load(options.load, *process);
  TESSERA_RETURN_IF_ERROR(process->start());
  if (!load.join(std::chrono::seconds(300))) return unavailable("not every miner was ready within 300 s");
  load.run(std::chrono::seconds(5));  // until work is under way everywhere
  load.figures.clear();
  Prng pauses(kKillSeed);
  std::vector<double> restarts;
  uint32_t at_full_load = 0;
  uint64_t registered_at_kill = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (uint32_t kill = 0; kill < options.kills; ++kill) {
    const auto all_are_back = [&] { return kill == 0 || load.figures.registrations - registered_at_kill >= options.load.miners; };
    if (kill % 2 == 0) load.run(std::chrono::seconds(kLongestReturnS), all_are_back);
    load.run(std::chrono::milliseconds(kShortestPauseMs + pauses.below(kLongestPauseMs - kShortestPauseMs)));
    at_full_load += all_are_back();
    process->kill();
    registered_at_kill = load.figures.registrations;
    TESSERA_RETURN_IF_ERROR(process->start());
    load.run(std::chrono::seconds(kLongestRestartS), [&] { return process->serves_after().has_value(); });
    if (!process->serves_after()) return unavailable("restart {} took more than {} s", kill + 1, kLongestRestartS);
    restarts.push_back(*process->serves_after());
  }
  load.run(std::chrono::seconds(5));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  load.settle(std::chrono::seconds(10));
  process->kill();
  nlohmann::json report = report_of(options, load.figures, seconds);
  std::sort(restarts.begin(), restarts.end());
  report["kills"] = options.kills;
  report["kills_at_full_load"] = at_full_load;
  report["restart_p50_s"] = restarts[restarts.size() / 2];
  report["restart_max_s"] = restarts.back();
  report["acknowledged"] = acknowledged_by(load);
  return report;
}

// In a folder of its own if none is given.
Status run_here(Options options) {
  start_logging({.name = "bench", .file = "", .level = "error"});
  const bool temporary = options.directory.empty();
  if (temporary) {
    options.directory = (std::filesystem::temp_directory_path() / "tessera-bench-XXXXXX").string();
    if (::mkdtemp(options.directory.data()) == nullptr) return internal_error("{}: can't make a folder there", options.directory);
  }
  TESSERA_RETURN_IF_ERROR(make_directories(options.directory));
  const StatusOr<nlohmann::json> report = options.kills > 0 ? measure_kills(options) : measure(options);
  if (temporary) {
    std::error_code ignored;
    std::filesystem::remove_all(options.directory, ignored);
  }
  TESSERA_RETURN_IF_ERROR(report.status());
  print_report(*report);
  return write_report(options.json, *report);
}

Status run_against(const Options& options) {
  start_logging({.name = "bench", .file = "", .level = "error"});
  net::prepare_grpc();
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
  report["acknowledged"] = acknowledged_by(load);
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
  command->add_option("--kills", options->kills, "Have the orchestrator in a process of its own, and kill it so often")
      ->check(CLI::Range(1, 100000));
  command->add_option("--serve", options->serve, "Be that process: the number of its socket")->group("");
  on_call(command, [options] {
    if (options->load.miners < options->load.stages) return invalid_argument("--miners: every stage needs one");
    if (options->serve >= 0) return serve_orchestrator(*options, options->serve);
    return options->connect.empty() ? run_here(*options) : run_against(*options);
  });
}

}  // namespace tessera::apps
