// Orders of administrators.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "tessera/base/log.h"
#include "tessera/core/run_changes.h"
#include "tessera/node/orchestrator_control.h"

namespace tessera::node {
namespace {

using nlohmann::json;

const std::map<std::string, core::Command> kPlainOrders = {{"pause", core::Command::kPause},
                                                           {"resume", core::Command::kResume},
                                                           {"stop", core::Command::kStop},
                                                           {"checkpoint", core::Command::kCheckpoint}};

// A miner by its number or the first digits of its key.
StatusOr<MinerIndex> find_miner(const core::OrchestratorState& state, const std::string& name) {
  MinerIndex index = 0;
  const auto [stop, failure] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (failure == std::errc() && stop == name.data() + name.size() && name.size() < 8) return index;
  std::vector<MinerIndex> found;
  for (const core::MinerRecord& miner : state.miners) {
    if (name.size() >= 4 && miner.registration.node.hex().rfind(name, 0) == 0) found.push_back(miner.index);
  }
  if (found.size() == 1) return found.front();
  return not_found("{} miners are called '{}'; give a miner's number or the first digits of its key, as 'tesseractl miners' "
                   "shows them", found.size(), name.substr(0, 64));
}

// The JSON of an order that was obeyed.
std::string answer_to_order(bool changed, const std::string& text) {
  return json{{"ok", true}, {"changed", changed}, {"text", text}}.dump();
}

}  // namespace

// What the order says, as the event to step (none: it is so already) and a sentence for people.
StatusOr<OrchestratorControl::Order> OrchestratorControl::read_order(const std::string& command,
                                                                              const std::string& argument) const {
  const core::OrchestratorState& state = core_.state();
  if (const auto plain = kPlainOrders.find(command); plain != kPlainOrders.end()) {
    return Order{core::Event(core::Commanded{plain->second}), command + ": accepted"};
  }
  const json order = json::parse(argument, nullptr, false);
  if (!order.is_object()) return invalid_argument("the argument of '{}' is no JSON object", command.substr(0, 64));
  try {
    if (command == "assign") {
      TESSERA_ASSIGN_OR_RETURN(const MinerIndex miner, find_miner(state, order.at("miner").get<std::string>()));
      const auto stage = order.at("stage").get<StageIndex>();
      TESSERA_ASSIGN_OR_RETURN(auto event, core_.assign_order(miner, stage, order.value("force", false)));
      return Order{std::move(event), fmt::format("miner {} goes to stage {} at the next epoch boundary and stays there", miner, stage)};
    }
    if (command == "drain") {
      TESSERA_ASSIGN_OR_RETURN(const MinerIndex miner, find_miner(state, order.at("miner").get<std::string>()));
      TESSERA_ASSIGN_OR_RETURN(auto event, core_.drain_order(miner));
      return Order{std::move(event), fmt::format("miner {} finishes what it holds and ends", miner)};
    }
    if (command == "config") {
      const auto key = order.at("key").get<std::string>();
      const auto value = order.at("value").get<std::string>();
      TESSERA_ASSIGN_OR_RETURN(auto event, core_.spec_order(key, value));
      return Order{std::move(event), fmt::format("{} is {} from now on", key, value)};
    }
    if (command == "stages") {
      TESSERA_ASSIGN_OR_RETURN(const auto layers, core::parse_stage_layers(state.spec, order.at("layers").get<std::string>()));
      TESSERA_ASSIGN_OR_RETURN(auto event, core_.stages_order(layers));
      return Order{std::move(event), fmt::format("the stages get {} layers when the run has drained and merged; their "
                                                 "optimizer moments start anew", fmt::join(layers, ", "))};
    }
  } catch (const json::exception& error) {
    return invalid_argument("the argument of '{}' can't be used: {}", command, error.what());
  }
  return invalid_argument("unknown command '{}'; known: create, pause, resume, stop, checkpoint, assign, drain, config, stages",
                          command.substr(0, 64));
}

Status OrchestratorControl::handle_command(CommandCall& call) {
  const auto& admins = options_.admins;
  const auto answer = [&](StatusOr<std::string> text) {
    answers_.emplace_back([done = std::move(call.done), text = std::move(text)]() mutable { done(std::move(text)); });
  };
  if (std::find(admins.begin(), admins.end(), call.node) == admins.end()) {
    answer(error(absl::StatusCode::kPermissionDenied,
                 "key {} may not give orders; add it to 'admins' in the orchestrator's YAML", call.node.hex()));
    return ok_status();
  }
  if (call.command == "create") return handle_create(call);
  if (!core_.state().created) {
    answer(failed_precondition("this orchestrator has no run yet; 'tesseractl run create FILE.yaml' makes one"));
    return ok_status();
  }
  StatusOr<Order> order = read_order(call.command, call.argument);
  if (!order.ok()) {
    answer(order.status());
    return ok_status();
  }
  const bool changed = order->event.has_value();
  if (changed) TESSERA_RETURN_IF_ERROR(apply(std::move(*order->event)));
  answer(answer_to_order(changed, changed ? order->text : "it is so already"));
  return ok_status();
}

// Datasets are big: the background thread prepares the run, and its answer comes back as a call.
Status OrchestratorControl::handle_create(CommandCall& call) {
  if (!options_.prepare_run) {
    answers_.emplace_back([done = std::move(call.done)] {
      done(error(absl::StatusCode::kUnimplemented, "this orchestrator makes no runs"));
    });
    return ok_status();
  }
  CreateJob job{call.argument, call.done};
  if (!surroundings_.start(std::move(job))) {
    answers_.emplace_back([done = std::move(call.done)] { done(unavailable("the orchestrator is stopping")); });
  }
  return ok_status();
}

Status OrchestratorControl::handle_created(CreatedCall& call) {
  StatusOr<std::string> text = std::string();
  const core::OrchestratorState& state = core_.state();
  if (!call.run.ok()) {
    text = call.run.status();
  } else if (!state.created) {
    TESSERA_RETURN_IF_ERROR(create(call.run->spec, call.run->data));
    spdlog::info("run '{}' is created", state.spec.name);
    text = answer_to_order(true, fmt::format("run '{}' is created and waits for its miners", state.spec.name));
  } else if (encode(call.run->spec) == state.file_spec || encode(call.run->spec) == encode(state.spec)) {
    text = answer_to_order(false, fmt::format("run '{}' is there already", state.spec.name));
  } else {
    text = error(absl::StatusCode::kAlreadyExists,
                 "this orchestrator has run '{}' already, with other settings (section {}); an orchestrator has one run: use "
                 "another directory, or 'tesseractl run config set' for what may change", state.spec.name,
                 core::differing_sections(state.spec, call.run->spec));
  }
  answers_.emplace_back([done = std::move(call.done), text = std::move(text)]() mutable { done(std::move(text)); });
  return ok_status();
}

}  // namespace tessera::node
