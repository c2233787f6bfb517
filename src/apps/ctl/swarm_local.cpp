#include "swarm_local.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <nlohmann/json.hpp>
#include <thread>

#include "commands.h"
#include "common/training_data.h"
#include "process.h"
#include "program_paths.h"
#include "swarm_summary.h"
#include "tessera/base/clock.h"
#include "tessera/base/files.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(100);
constexpr TimeMs kProgressMs = 500;
constexpr TimeMs kPlainProgressMs = 5000;   // where the output is no terminal
constexpr TimeMs kStartLimitMs = 30000;     // of the orchestrator, until it listens
constexpr TimeMs kStopLimitMs = 4000;       // of an orderly stop; then everything is killed
constexpr TimeMs kFarewellMs = 30000;       // for miners to end after a run that is over; a busy machine takes seconds
constexpr TimeMs kShortFarewellMs = 500;    // after Ctrl+C
constexpr int kMaxRestarts = 20;            // of one process

struct Child {
  std::string name;
  std::string directory;
  std::vector<std::string> command;
  pid_t pid = -1;            // -1: not running
  int restarts = 0;
  bool ended_well = false;
};

class LocalSwarm {
 public:
  LocalSwarm(const SwarmOptions& options, const StopFlags& signals) : options_(options), signals_(signals) {}
  ~LocalSwarm() { kill_all(); }

  StatusOr<int> run();

 private:
  Status prepare();
  Status start_orchestrator();
  Status start_miners();
  Status prepare_validators();
  Status start_validators();
  Status start(Child& child);
  Status write_pids();
  // Looks after the children; true when the orchestrator has ended well.
  StatusOr<bool> supervise();
  void show_progress(bool last);
  void stop_orderly();
  static void end_orderly(const std::vector<Child>& children);
  void await_miners();
  void kill_all();
  StatusOr<nlohmann::json> finish(double seconds);
  std::string log_of(const Child& child) const { return options_.out + "/logs/" + child.name + ".log"; }

  const SwarmOptions& options_;
  const StopFlags& signals_;
  config::RunConfig config_;
  Child orchestrator_;
  std::vector<Child> miners_;
  std::vector<Child> validators_;
  std::string validator_keys_;  // for the orchestrator
  std::string address_;
  std::unique_ptr<net::GrpcOrchestratorLink> link_;
  TimeMs shown_at_ = 0;
  std::deque<std::pair<TimeMs, uint64_t>> tokens_seen_;
};

Status LocalSwarm::prepare() {
  TESSERA_ASSIGN_OR_RETURN(config_, config::load_run_config(options_.config, options_.overrides));
  const std::string& out = options_.out;
  if (options_.resume.empty() && file_exists(out + "/journal.sqlite")) {
    return failed_precondition("{} holds a run already; pass --resume to go on with it, or choose another --out", out);
  }
  for (const char* folder : {"", "/logs", "/miners"}) TESSERA_RETURN_IF_ERROR(make_directories(out + folder));
  if (config_.data.path.empty()) config_.data.path = out + "/data";
  fmt::print(stderr, "preparing the training data in {}\n", config_.data.path);
  TESSERA_ASSIGN_OR_RETURN(const auto dataset, open_dataset(config_, config_.data.path));
  config_.data.text.clear();  // built: the orchestrator only reads it
  return write_file_atomic(out + "/run.yaml", config::to_yaml(config_));
}

Status LocalSwarm::start(Child& child) {
  TESSERA_ASSIGN_OR_RETURN(child.pid, start_process({child.command, log_of(child)}));
  return write_pids();
}

Status LocalSwarm::write_pids() {
  nlohmann::json pids = {{"orchestrator", orchestrator_.pid}, {"miners", nlohmann::json::array()}};
  for (const Child& miner : miners_) pids["miners"].push_back(miner.pid);
  for (const Child& validator : validators_) pids["validators"].push_back(validator.pid);
  return write_file_atomic(options_.out + "/pids.json", pids.dump() + "\n");
}

Status LocalSwarm::start_orchestrator() {
  TESSERA_ASSIGN_OR_RETURN(const std::string program, sibling_program("tessera-orchestrator"));
  const std::string& out = options_.out;
  const std::string about = out + "/orchestrator.json";
  ::unlink(about.c_str());
  TESSERA_RETURN_IF_ERROR(write_file_atomic(
      out + "/orchestrator.yaml", fmt::format("listen: 127.0.0.1:0\ndirectory: {0}\nrun_config: {0}/run.yaml\nvalidators: [{1}]\n", out,
                                               validator_keys_)));
  orchestrator_.name = "orchestrator";
  orchestrator_.directory = out;
  orchestrator_.command = {program, "--config", out + "/orchestrator.yaml", "--exit-when-over"};
  Child first = orchestrator_;
  if (!options_.resume.empty()) {
    first.command.push_back("--resume");
    first.command.push_back(options_.resume == "latest" ? out + "/checkpoint" : options_.resume);
  }
  TESSERA_ASSIGN_OR_RETURN(orchestrator_.pid, start_process({first.command, log_of(first)}));
  TESSERA_RETURN_IF_ERROR(write_pids());
  const TimeMs deadline = monotonic_now_ms() + kStartLimitMs;
  while (!file_exists(about)) {
    if (const auto code = poll_process(orchestrator_.pid)) {
      orchestrator_.pid = -1;
      return failed_precondition("the orchestrator ended with exit code {}; see {}", *code, log_of(orchestrator_));
    }
    if (monotonic_now_ms() > deadline || signals_.stop) {
      return unavailable("the orchestrator did not come up; see {}", log_of(orchestrator_));
    }
    std::this_thread::sleep_for(kPoll);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string text, read_file(about));
  address_ = nlohmann::json::parse(text).at("address").get<std::string>();
  // A restart after a crash listens on the same port, and goes on from its journal.
  orchestrator_.command.push_back("--set");
  orchestrator_.command.push_back("listen=" + address_);
  TESSERA_ASSIGN_OR_RETURN(link_, net::GrpcOrchestratorLink::create(
      {.orchestrator = address_, .signer = std::make_shared<net::RequestSigner>(KeyPair::generate()),
       .software = version(), .expected_orchestrator = {}, .timeout_ms = 2000}));
  return ok_status();
}

Status LocalSwarm::start_miners() {
  TESSERA_ASSIGN_OR_RETURN(const std::string program, sibling_program("tessera-miner"));
  const auto& pipeline = config_.spec.pipeline;
  const uint32_t count = options_.miners > 0 ? options_.miners : pipeline.stages * pipeline.miners_per_stage;
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  const uint32_t threads = options_.threads > 0 ? options_.threads : std::max(1u, cores / count);
  for (uint32_t i = 0; i < count; ++i) {
    Child miner;
    miner.name = fmt::format("miner-{}", i);
    miner.directory = fmt::format("{}/miners/{}", options_.out, i);
    miner.command = {program};
    for (const std::string& setting :
         {"orchestrator=" + address_, "directory=" + miner.directory, fmt::format("threads={}", threads),
          "device=" + options_.device}) {
      miner.command.push_back("--set");
      miner.command.push_back(setting);
    }
    for (const std::string& setting : options_.miner_overrides) {
      miner.command.push_back("--set");
      miner.command.push_back(setting);
    }
    miners_.push_back(std::move(miner));
  }
  for (Child& miner : miners_) TESSERA_RETURN_IF_ERROR(start(miner));
  return ok_status();
}

// Their keys, which the orchestrator must know before it starts.
Status LocalSwarm::prepare_validators() {
  for (uint32_t i = 0; i < options_.validators; ++i) {
    Child validator;
    validator.name = fmt::format("validator-{}", i);
    validator.directory = fmt::format("{}/validators/{}", options_.out, i);
    TESSERA_RETURN_IF_ERROR(make_directories(validator.directory));
    TESSERA_ASSIGN_OR_RETURN(const KeyPair key, KeyPair::load_or_create(validator.directory + "/validator.key"));
    validator_keys_ += (i == 0 ? "" : ", ") + key.id().hex();
    validators_.push_back(std::move(validator));
  }
  return ok_status();
}

Status LocalSwarm::start_validators() {
  if (validators_.empty()) return ok_status();
  TESSERA_ASSIGN_OR_RETURN(const std::string program, sibling_program("tessera-validator"));
  for (size_t i = 0; i < validators_.size(); ++i) {
    Child& validator = validators_[i];
    const auto& devices = options_.validator_devices;
    const std::string& device = devices.empty() ? options_.device : devices[i % devices.size()];
    validator.command = {program};
    for (const std::string& setting : {"orchestrator=" + address_, "directory=" + validator.directory,
                                       fmt::format("threads={}", std::max(1u, options_.threads)), "device=" + device}) {
      validator.command.push_back("--set");
      validator.command.push_back(setting);
    }
    TESSERA_RETURN_IF_ERROR(start(validator));
  }
  return ok_status();
}

StatusOr<bool> LocalSwarm::supervise() {
  const auto restart = [&](Child& child, int code) -> Status {
    if (++child.restarts > kMaxRestarts) {
      return failed_precondition("{} ended {} times, last with exit code {}; see {}", child.name, child.restarts, code, log_of(child));
    }
    if (code == kExitFailure || code == kExitUsage) {
      return failed_precondition("{} failed; see {}", child.name, log_of(child));
    }
    fmt::print(stderr, "\n{} ended with exit code {}; starting it again\n", child.name, code);
    return start(child);
  };
  if (const auto code = poll_process(orchestrator_.pid)) {
    orchestrator_.pid = -1;
    if (*code == 0) return true;
    TESSERA_RETURN_IF_ERROR(restart(orchestrator_, *code));
  }
  for (auto* children : {&miners_, &validators_}) {
    for (Child& child : *children) {
      if (child.pid < 0) continue;
      const auto code = poll_process(child.pid);
      if (!code) continue;
      child.pid = -1;
      child.ended_well = *code == 0;
      if (*code != 0) TESSERA_RETURN_IF_ERROR(restart(child, *code));
    }
  }
  return false;
}

void LocalSwarm::show_progress(bool last) {
  const bool live = ::isatty(STDERR_FILENO) != 0;
  const TimeMs now = monotonic_now_ms();
  if (!last && now - shown_at_ < (live ? kProgressMs : kPlainProgressMs)) return;
  shown_at_ = now;
  const auto answer = link_->query("status", "");
  if (!answer.ok()) return;
  const nlohmann::json status = nlohmann::json::parse(*answer, nullptr, false);
  if (!status.is_object()) return;
  const auto tokens = status.value("tokens", uint64_t{0});
  tokens_seen_.emplace_back(now, tokens);
  while (tokens_seen_.size() > 2 && now - tokens_seen_.front().first > 10000) tokens_seen_.pop_front();
  const auto& [since, before] = tokens_seen_.front();
  const double rate = now > since ? static_cast<double>(tokens - std::min(before, tokens)) * 1000.0 / static_cast<double>(now - since) : 0.0;
  const auto audits = status.value("audits_open", uint64_t{0});
  const auto& spec = config_.spec;
  const uint64_t per_step = uint64_t{spec.training.microbatches_per_step} * spec.pipeline.miners_per_stage;
  const double ratio = 2.0 * spec.model.width * spec.tokens_per_microbatch() /
                       static_cast<double>(payload_bytes(spec.boundary.codec, spec.tokens_per_microbatch(), spec.boundary.rank));
  fmt::print(stderr, "{}{:>9}  step {}/{}  loss {:.3f}  {:.0f} tokens/s  compression {:.0f}x  merges {}  miners {}/{}{}{}",
             live ? "\r" : "", status.value("phase", ""), status.value("microbatches_done", uint64_t{0}) / per_step,
             spec.training.steps, status.value("loss", 0.0), rate, ratio, status.value("merges", uint64_t{0}),
             status.value("miners_live", 0u), miners_.size(), audits > 0 ? fmt::format("  audits to judge {}", audits) : "",
             live ? "\x1b[K" : "\n");
  std::fflush(stderr);
}

void LocalSwarm::kill_all() {
  const auto end = [](Child& child) {
    if (child.pid < 0) return;
    ::kill(child.pid, SIGKILL);
    while (!poll_process(child.pid)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    child.pid = -1;
  };
  for (Child& miner : miners_) end(miner);
  for (Child& validator : validators_) end(validator);
  end(orchestrator_);
}

// Asks the orchestrator to drain and checkpoint, then the miners to go; what is left after the limit is killed.
void LocalSwarm::stop_orderly() {
  fmt::print(stderr, "\nstopping: draining and writing a checkpoint\n");
  const TimeMs deadline = monotonic_now_ms() + kStopLimitMs;
  if (orchestrator_.pid > 0) ::kill(orchestrator_.pid, SIGTERM);
  while (orchestrator_.pid > 0 && monotonic_now_ms() < deadline && !signals_.abandon) {
    if (poll_process(orchestrator_.pid)) orchestrator_.pid = -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  end_orderly(miners_);
  end_orderly(validators_);
  await_miners();
}

void LocalSwarm::end_orderly(const std::vector<Child>& children) {
  for (const Child& child : children) {
    if (child.pid > 0) ::kill(child.pid, SIGTERM);
  }
}

void LocalSwarm::await_miners() {
  const TimeMs began = monotonic_now_ms();
  bool alive = true;
  while (alive && monotonic_now_ms() < began + (signals_.stop ? kShortFarewellMs : kFarewellMs)) {
    alive = false;
    for (auto* children : {&miners_, &validators_}) {
      for (Child& child : *children) {
        if (child.pid < 0) continue;
        if (const auto code = poll_process(child.pid)) {
          child.pid = -1;
          child.ended_well = *code == 0;
          if (*code != 0) fmt::print(stderr, "\n{} ended with exit code {}; see {}\n", child.name, *code, log_of(child));
        } else {
          alive = true;
        }
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (const Child& miner : miners_) {
    if (miner.pid > 0) fmt::print(stderr, "\n{} did not end and is killed; see {}\n", miner.name, log_of(miner));
  }
  kill_all();
}

StatusOr<nlohmann::json> LocalSwarm::finish(double seconds) {
  SummaryInputs inputs;
  inputs.out = options_.out;
  inputs.seconds = seconds;
  for (const Child& miner : miners_) {
    inputs.miner_directories.push_back(miner.directory);
    if (miner.ended_well) inputs.miners_ended_well++;
  }
  TESSERA_ASSIGN_OR_RETURN(nlohmann::json summary, summarise(inputs));
  if (options_.validate && !signals_.stop && file_exists(options_.out + "/checkpoint/latest")) {
    fmt::print(stderr, "evaluating the checkpoint on the validation split\n");
    TESSERA_ASSIGN_OR_RETURN(const std::string program, sibling_program("tessera-model"));
    TESSERA_ASSIGN_OR_RETURN(const std::string text,
                             run_process({program, "eval", "--checkpoint", options_.out + "/checkpoint", "--data",
                                          config_.data.path, "--max-tokens", "65536", "--json"}));
    summary["val_loss"] = nlohmann::json::parse(text).at("loss");
  }
  TESSERA_RETURN_IF_ERROR(write_file_atomic(options_.out + "/summary.json", summary.dump(2) + "\n"));
  return summary;
}

StatusOr<int> LocalSwarm::run() {
  TESSERA_RETURN_IF_ERROR(prepare());
  const TimeMs began = monotonic_now_ms();
  TESSERA_RETURN_IF_ERROR(prepare_validators());
  TESSERA_RETURN_IF_ERROR(start_orchestrator());
  TESSERA_RETURN_IF_ERROR(start_miners());
  TESSERA_RETURN_IF_ERROR(start_validators());
  while (!signals_.stop) {
    TESSERA_ASSIGN_OR_RETURN(const bool over, supervise());
    if (over) break;
    show_progress(false);
    std::this_thread::sleep_for(kPoll);
  }
  const double seconds = static_cast<double>(monotonic_now_ms() - began) / 1000.0;
  if (signals_.stop) {
    stop_orderly();
  } else {
    // One that did not hear of the run's end would wait for the orchestrator to come back.
    end_orderly(validators_);
    await_miners();
  }
  fmt::print(stderr, "\n");
  TESSERA_ASSIGN_OR_RETURN(const nlohmann::json summary, finish(seconds));
  fmt::print("{}\n", options_.json ? summary.dump() : summary.dump(2));
  fmt::print(stderr, "summary: {0}/summary.json\ncheckpoint: {0}/checkpoint\nlogs: {0}/logs\n", options_.out);
  return signals_.stop ? 130 : kExitOk;
}

}  // namespace

int run_local_swarm(const SwarmOptions& options, const StopFlags& signals) {
  net::prepare_grpc();
  LocalSwarm swarm(options, signals);
  const StatusOr<int> code = swarm.run();
  return code.ok() ? *code : fail("tesseractl", code.status());
}

void add_swarm_commands(CLI::App& app, Action& action) {
  CLI::App* swarm = app.add_subcommand("swarm", "A whole swarm");
  swarm->require_subcommand(1);
  CLI::App* local = swarm->add_subcommand("local", "Starts and supervises a swarm of processes on this machine");
  const auto options = std::make_shared<SwarmOptions>();
  local->add_option("--config", options->config, "The run's YAML")->required();
  local->add_option("--out", options->out, "Folder for data, ledger, checkpoint, logs and summary.json")->required();
  local->add_option("--set", options->overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  local->add_option("--miner-set", options->miner_overrides, "key=value over a key of every miner's YAML: gpus=[0,1]")
      ->allow_extra_args(false);
  local->add_option("--resume", options->resume, "Go on from a checkpoint (default: OUT/checkpoint)")->expected(0, 1)->default_str("latest");
  local->add_option("--device", options->device, "auto, cpu, cuda or cuda:N, for every miner")->capture_default_str();
  local->add_option("--miners", options->miners, "Miners to start (default: stages x miners_per_stage)");
  local->add_option("--validators", options->validators, "Validators to start; they have work if audit.enabled is set");
  local->add_option("--validator-device", options->validator_devices, "Their devices, in turns (default: --device)")->allow_extra_args(false);
  local->add_option("--threads", options->threads, "Compute threads of a miner on the CPU (default: cores shared)");
  local->add_flag("--json", options->json, "Print the summary as one line of JSON");
  local->add_flag("!--no-validate", options->validate, "Leave out the evaluation on the validation split");
  local->callback([&action, options] { action = [options] { return run_local_swarm(*options, catch_signals()); }; });
}

}  // namespace tessera::apps
