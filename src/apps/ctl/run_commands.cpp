// run status|pause|resume|stop|checkpoint, miners: questions and orders to a running orchestrator.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "tessera/net/grpc_logging.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

struct Flags {
  std::string orchestrator;
  std::string key;
  bool json = false;
};

StatusOr<std::unique_ptr<net::GrpcOrchestratorLink>> connect(const Flags& flags) {
  net::quiet_grpc_logging();
  KeyPair key = KeyPair::generate();
  if (!flags.key.empty()) {
    TESSERA_ASSIGN_OR_RETURN(key, KeyPair::load_or_create(flags.key));
  }
  return net::GrpcOrchestratorLink::create({.orchestrator = flags.orchestrator,
                                            .signer = std::make_shared<net::RequestSigner>(key),
                                            .software = version(),
                                            .expected_orchestrator = {}});
}

void print_status(const nlohmann::json& status) {
  fmt::print("run {} is {}: {} of {} microbatches, loss {:.3f}, {} merges, {} miners live\n",
             status["name"].get<std::string>(), status["phase"].get<std::string>(),
             status["microbatches_done"].get<uint64_t>(), status["microbatches_total"].get<uint64_t>(),
             status["loss"].get<double>(), status["merges"].get<uint64_t>(), status["miners_live"].get<uint32_t>());
  for (const auto& stage : status["stages"]) {
    fmt::print("  stage {}: epoch {}, {} ready{}\n", stage["stage"].get<uint32_t>(), stage["epoch"].get<uint64_t>(),
               stage["ready"].get<uint32_t>(),
               stage["merge"].get<std::string>().empty() ? "" : ", merging: " + stage["merge"].get<std::string>());
  }
}

void print_miners(const nlohmann::json& miners) {
  fmt::print("{:>5} {:8} {:>5} {:8} {:>5} {:>8} {:>6} {:>9}  {}\n", "miner", "node", "stage", "state", "epoch",
             "counted", "queue", "ms/batch", "why");
  for (const auto& miner : miners) {
    const auto& status = miner["status"];
    fmt::print("{:>5} {:8} {:>5} {:8} {:>5} {:>8} {:>6} {:>9.1f}  {}\n", miner["miner"].get<uint32_t>(),
               miner["node"].get<std::string>().substr(0, 8), miner["stage"].get<uint32_t>(),
               miner["state"].get<std::string>(), miner["epoch"].get<uint64_t>(), miner["counted"].get<uint64_t>(),
               status["queued"].get<uint32_t>(), status["forward_ms"].get<double>() + status["backward_ms"].get<double>(),
               miner["why"].get<std::string>());
  }
}

int ask(const Flags& flags, const std::string& topic) {
  const auto link = connect(flags);
  if (!link.ok()) return fail("tesseractl", link.status());
  const auto answer = (*link)->query(topic, "");
  if (!answer.ok()) return fail("tesseractl", answer.status());
  if (flags.json) {
    fmt::print("{}\n", *answer);
    return kExitOk;
  }
  try {
    const nlohmann::json value = nlohmann::json::parse(*answer);
    topic == "miners" ? print_miners(value) : print_status(value);
  } catch (const nlohmann::json::exception& error) {
    return fail("tesseractl", data_loss("the orchestrator's answer can't be read: {}", error.what()));
  }
  return kExitOk;
}

int order(const Flags& flags, const std::string& command) {
  const auto link = connect(flags);
  if (!link.ok()) return fail("tesseractl", link.status());
  const auto answer = (*link)->command(command, "");
  if (!answer.ok()) return fail("tesseractl", answer.status());
  fmt::print("{}\n", flags.json ? *answer : command + ": accepted");
  return kExitOk;
}

std::shared_ptr<Flags> add_flags(CLI::App* command, bool needs_key) {
  const auto flags = std::make_shared<Flags>();
  command->add_option("--orchestrator", flags->orchestrator, "host:port")->required();
  if (needs_key) {
    command->add_option("--key", flags->key, "Key file of an administrator (the orchestrator's own, or one of its 'admins')")
        ->required()->check(CLI::ExistingFile);
  }
  command->add_flag("--json", flags->json, "Answer as JSON");
  return flags;
}

}  // namespace

void add_run_commands(CLI::App& app, Action& action) {
  CLI::App* run = app.add_subcommand("run", "A run, through its orchestrator");
  run->require_subcommand(1);
  CLI::App* status = run->add_subcommand("status", "What the run does");
  const auto status_flags = add_flags(status, false);
  status->callback([&action, status_flags] { action = [=] { return ask(*status_flags, "status"); }; });
  const std::vector<std::pair<std::string, std::string>> orders = {
      {"pause", "No new microbatches"},
      {"resume", "Go on after a pause"},
      {"stop", "Finish what is in flight, write a checkpoint, stop"},
      {"checkpoint", "Write a checkpoint and go on"}};
  for (const auto& [name, about] : orders) {
    CLI::App* command = run->add_subcommand(name, about);
    const auto flags = add_flags(command, true);
    command->callback([&action, flags, name = name] { action = [=] { return order(*flags, name); }; });
  }
  CLI::App* miners = app.add_subcommand("miners", "The run's miners: stage, speed, queue, state and why");
  const auto miners_flags = add_flags(miners, false);
  miners->callback([&action, miners_flags] { action = [=] { return ask(*miners_flags, "miners"); }; });
}

}  // namespace tessera::apps
