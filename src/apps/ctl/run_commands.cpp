// run ..., miners, miner drain, assign: questions and orders to a running orchestrator.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "merge_print.h"
#include "common/daemon.h"
#include "tessera/base/files.h"
#include "tessera/config/run_config.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

struct Flags {
  std::string orchestrator;
  std::string key;
  bool json = false;
};

StatusOr<std::unique_ptr<net::GrpcOrchestratorLink>> connect(const Flags& flags) {
  net::prepare_grpc();
  KeyPair key = KeyPair::generate();
  if (!flags.key.empty()) {
    TESSERA_ASSIGN_OR_RETURN(key, KeyPair::load_or_create(flags.key));
  }
  return net::GrpcOrchestratorLink::create({.orchestrator = flags.orchestrator,
                                            .signer = std::make_shared<net::RequestSigner>(key),
                                            .software = version(),
                                            .expected_orchestrator = {}});
}

// A number for people, or a dash for what nobody has measured.
std::string figure(double value, const char* unit) {
  return value > 0 ? fmt::format("{:.1f}{}", value, unit) : "-";
}

void print_status(const nlohmann::json& status) {
  if (status["phase"] == "none") {
    fmt::print("no run yet: 'tesseractl run create FILE.yaml' makes one\n");
    return;
  }
  fmt::print("run {} is {}: {} of {} microbatches, loss {:.3f}, {} merges, {} miners live, {} waiting\n",
             status["name"].get<std::string>(), status["phase"].get<std::string>(),
             status["microbatches_done"].get<uint64_t>(), status["microbatches_total"].get<uint64_t>(),
             status["loss"].get<double>(), status["merges"].get<uint64_t>(), status["miners_live"].get<uint32_t>(),
             status["miners_waiting"].get<uint32_t>());
  for (const auto& stage : status["stages"]) {
    fmt::print("  stage {}: layers {}, epoch {}, {} ready, {}{}\n", stage["stage"].get<uint32_t>(),
               stage["layers"].get<std::string>(), stage["epoch"].get<uint64_t>(), stage["ready"].get<uint32_t>(),
               figure(stage["microbatches_per_s"].get<double>(), " microbatches/s"),
               stage["merge"].get<std::string>().empty() ? "" : ", merging: " + stage["merge"].get<std::string>());
  }
}

void print_miners(const nlohmann::json& miners) {
  fmt::print("{:>5} {:8} {:>5} {:8} {:>5} {:>8} {:>6} {:>7} {:>9}  {}\n", "miner", "node", "stage", "state", "epoch",
             "counted", "queue", "batch/s", "heard", "why");
  for (const auto& miner : miners) {
    const auto place = miner["queue_position"].get<uint64_t>();
    const auto heard = miner["heard_ms_ago"].get<int64_t>();
    fmt::print("{:>5} {:8} {:>5} {:8} {:>5} {:>8} {:>6} {:>7} {:>9}  {}{}\n", miner["miner"].get<uint32_t>(),
               miner["node"].get<std::string>().substr(0, 8),
               place > 0 ? fmt::format("#{}", place) : fmt::format("{}", miner["stage"].get<uint32_t>()),
               miner["state"].get<std::string>(), miner["epoch"].get<uint64_t>(), miner["counted"].get<uint64_t>(),
               miner["status"]["queued"].get<uint32_t>(), figure(miner["microbatches_per_s"].get<double>(), ""),
               heard < 0 ? "never" : fmt::format("{:.1f} s", static_cast<double>(heard) / 1000),
               miner["why"].get<std::string>(), miner["pinned"].get<bool>() ? " (pinned)" : "");
  }
}

// The error, as JSON if that was asked for; 75 where trying again may help.
int failed(const Flags& flags, const Status& status) {
  if (flags.json) {
    const nlohmann::json value = {{"ok", false}, {"code", absl::StatusCodeToString(status.code())}, {"error", message_of(status)}};
    fmt::print("{}\n", value.dump());
  }
  fail("tesseractl", status);
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ? kExitRestart : kExitFailure;
}

void print_answer(const std::string& topic, const std::string& argument, const nlohmann::json& value) {
  if (topic == "miners") return print_miners(value);
  if (topic == "status") return print_status(value);
  argument.empty() ? print_merges(value) : print_merge(value);
}

int ask(const Flags& flags, const std::string& topic, const std::string& argument = "") {
  const auto link = connect(flags);
  if (!link.ok()) return failed(flags, link.status());
  const auto answer = (*link)->query(topic, argument);
  if (!answer.ok()) return failed(flags, answer.status());
  if (flags.json) {
    fmt::print("{}\n", *answer);
    return kExitOk;
  }
  try {
    print_answer(topic, argument, nlohmann::json::parse(*answer));
  } catch (const nlohmann::json::exception& error) {
    return failed(flags, data_loss("the orchestrator's answer can't be read: {}", error.what()));
  }
  return kExitOk;
}

int order(const Flags& flags, const std::string& command, const std::string& argument) {
  const auto link = connect(flags);
  if (!link.ok()) return failed(flags, link.status());
  const auto answer = (*link)->command(command, argument);
  if (!answer.ok()) return failed(flags, answer.status());
  const nlohmann::json value = nlohmann::json::parse(*answer, nullptr, false);
  const std::string text = value.is_object() ? value.value("text", "accepted") : "accepted";
  fmt::print("{}\n", flags.json ? *answer : text);
  return kExitOk;
}

// The file is read and checked here: a mistake in it is told before anything is sent. The orchestrator gets the complete
// configuration, so that both sides mean the same by every default.
int create(const Flags& flags, const std::string& file, const std::vector<std::string>& overrides) {
  const auto run = config::load_run_config(file, overrides);
  if (!run.ok()) return failed(flags, run.status());
  return order(flags, "create", config::to_yaml(*run));
}

std::shared_ptr<Flags> add_flags(CLI::App* command, bool needs_key) {
  const auto flags = std::make_shared<Flags>();
  command->add_option("--orchestrator", flags->orchestrator, "host:port")->required()->envname("TESSERA_ORCHESTRATOR");
  if (needs_key) {
    command->add_option("--key", flags->key, "Key file of an administrator (the orchestrator's own, or one of its 'admins')")
        ->required()->check(CLI::ExistingFile)->envname("TESSERA_KEY");
  }
  command->add_flag("--json", flags->json, "Answer as JSON, errors too");
  return flags;
}

void add_run_orders(CLI::App* run, Action& action) {
  const std::vector<std::pair<std::string, std::string>> orders = {
      {"pause", "No new microbatches"},
      {"resume", "Go on after a pause"},
      {"stop", "Finish what is in flight, write a checkpoint, stop"},
      {"checkpoint", "Write a checkpoint and go on"}};
  for (const auto& [name, about] : orders) {
    CLI::App* command = run->add_subcommand(name, about);
    const auto flags = add_flags(command, true);
    command->callback([&action, flags, name = name] { action = [=] { return order(*flags, name, ""); }; });
  }
  CLI::App* created = run->add_subcommand("create", "Give the orchestrator its run; does nothing if it has this one already");
  const auto created_flags = add_flags(created, true);
  const auto file = std::make_shared<std::string>();
  const auto overrides = std::make_shared<std::vector<std::string>>();
  created->add_option("file", *file, "The run's YAML")->required();
  created->add_option("--set", *overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  created->callback([=, &action] { action = [=] { return create(*created_flags, *file, *overrides); }; });

  CLI::App* config = run->add_subcommand("config", "Settings of the running run");
  config->require_subcommand(1);
  CLI::App* set = config->add_subcommand("set", "Change one; refused if it can't change while the run is running");
  const auto set_flags = add_flags(set, true);
  const auto key = std::make_shared<std::string>();
  const auto value = std::make_shared<std::string>();
  set->add_option("key", *key, "As in the run's YAML: training.learning_rate")->required();
  set->add_option("value", *value)->required();
  set->callback([=, &action] {
    action = [=] { return order(*set_flags, "config", nlohmann::json{{"key", *key}, {"value", *value}}.dump()); };
  });

  CLI::App* stages = run->add_subcommand("stages", "Give the stages other layers, at the next common epoch boundary");
  const auto stages_flags = add_flags(stages, true);
  const auto layers = std::make_shared<std::string>();
  stages->add_option("--layers", *layers, "One range a stage, both ends included: 0-5,6-11")->required();
  stages->callback([=, &action] {
    action = [=] { return order(*stages_flags, "stages", nlohmann::json{{"layers", *layers}}.dump()); };
  });
}

void add_miner_orders(CLI::App& app, Action& action) {
  CLI::App* assign = app.add_subcommand("assign", "Give a miner a stage, from its next epoch boundary on");
  const auto assign_flags = add_flags(assign, true);
  const auto miner = std::make_shared<std::string>();
  const auto stage = std::make_shared<uint32_t>(0);
  const auto force = std::make_shared<bool>(false);
  assign->add_option("miner", *miner, "Its number, or the first digits of its key")->required();
  assign->add_option("stage", *stage)->required();
  assign->add_flag("--force", *force, "Even if its present stage is left without a ready miner");
  assign->callback([=, &action] {
    action = [=] {
      return order(*assign_flags, "assign", nlohmann::json{{"miner", *miner}, {"stage", *stage}, {"force", *force}}.dump());
    };
  });
  CLI::App* group = app.add_subcommand("miner", "One miner");
  group->require_subcommand(1);
  CLI::App* drain = group->add_subcommand("drain", "Let it finish what it holds, and end");
  const auto drain_flags = add_flags(drain, true);
  const auto drained = std::make_shared<std::string>();
  drain->add_option("miner", *drained, "Its number, or the first digits of its key")->required();
  drain->callback([=, &action] {
    action = [=] { return order(*drain_flags, "drain", nlohmann::json{{"miner", *drained}}.dump()); };
  });
}

}  // namespace

void add_run_commands(CLI::App& app, Action& action) {
  CLI::App* run = app.add_subcommand("run", "A run, through its orchestrator");
  run->require_subcommand(1);
  CLI::App* status = run->add_subcommand("status", "What the run does");
  const auto status_flags = add_flags(status, false);
  status->callback([&action, status_flags] { action = [=] { return ask(*status_flags, "status"); }; });
  add_run_orders(run, action);
  CLI::App* miners = app.add_subcommand("miners", "The run's miners: stage, speed, queue, state and why");
  const auto miners_flags = add_flags(miners, false);
  miners->callback([&action, miners_flags] { action = [=] { return ask(*miners_flags, "miners"); }; });
  add_miner_orders(app, action);
  CLI::App* merges = app.add_subcommand("merges", "The last merges of every stage");
  const auto merges_flags = std::make_shared<Flags>();
  const auto which = std::make_shared<std::string>();
  merges->add_option("--orchestrator", merges_flags->orchestrator, "host:port")->envname("TESSERA_ORCHESTRATOR")->required();
  merges->add_flag("--json", merges_flags->json, "Answer as JSON, errors too");
  CLI::App* show = merges->add_subcommand("show", "One merge: who agreed with whom");
  show->add_option("id", *which, "STAGE/EPOCH, as 'tesseractl merges' shows it")->required();
  show->fallthrough();
  merges->callback([=, &action] { action = [=] { return ask(*merges_flags, "merges", *which); }; });
}

}  // namespace tessera::apps
