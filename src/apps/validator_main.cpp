// tessera-validator: re-runs a secretly chosen part of the miners' work and says whether it is what they said.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/daemon.h"
#include "common/training_data.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/collective/groups.h"
#include "tessera/config/daemon_config.h"
#include "tessera/model/stage_engine.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"
#include "tessera/node/validator_node.h"
#include "validator/calibrate.h"

namespace tessera::apps {
namespace {

struct Flags {
  std::string config;
  std::vector<std::string> overrides;
};

StatusOr<std::string> validate(const Flags& flags, StopFlags& signals) {
  TESSERA_ASSIGN_OR_RETURN(const auto config, config::load_validator_config(flags.config, flags.overrides));
  start_logging({.name = "validator", .file = config.log.file, .level = config.log.level});
  net::prepare_grpc();
  TESSERA_RETURN_IF_ERROR(make_directories(config.directory));
  TESSERA_ASSIGN_OR_RETURN(const KeyPair key, KeyPair::load_or_create(config.key_file));
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(name_of(config.device)));
  const auto signer = std::make_shared<net::RequestSigner>(key);
  TESSERA_ASSIGN_OR_RETURN(const auto orchestrator, net::GrpcOrchestratorLink::create({.orchestrator = config.orchestrator, .signer = signer, .software = version(), .expected_orchestrator = {}}));
  TESSERA_ASSIGN_OR_RETURN(const auto blobs, net::GrpcBlobLink::create({.server = config.orchestrator, .signer = signer, .software = version(), .expected_server = {}}));
  ShardCache tokens(config.directory + "/shards", *blobs);

  node::ValidatorOptions options;
  options.incarnation = random_u64();
  options.memory_bytes = model::device_memory_bytes(device);
  options.software = version();
  options.auditor.device = device;
  options.auditor.make_engine = [&](const core::RunSpec& spec, StageIndex stage, const core::BoxShape& shape) {
    model::EngineOptions engine{.spec = spec, .stage = stage, .device = device, .threads = static_cast<int>(config.threads), .max_in_flight = core::kMaxSegmentReceipts};
    if (shape.workers > 1) {
      // Workers that share this device add up as those do that have one each.
      model::EngineOptions box = engine;
      box.box.devices.assign(shape.workers, device);
      for (auto& group : collective::make_shared_device_groups(device, shape.workers)) box.box.groups.push_back(std::move(group));
      box.box.zero_stage = shape.zero_stage;
      auto made = model::make_stage_engine(box);
      if (made.ok()) return made;
      // A box that can't be is what somebody made up who does not want to be judged.
      spdlog::warn("a miner's box of {} can't be made here, its work is computed by one worker: {}", shape.workers, message_of(made.status()));
    }
    return model::make_stage_engine(engine);
  };
  node::ValidatorNode node(std::move(options), {orchestrator.get(), blobs.get(), &tokens});
  const nlohmann::json about = {{"node", key.id().hex()}, {"pid", ::getpid()}, {"device", device}};
  TESSERA_RETURN_IF_ERROR(write_file_atomic(config.directory + "/validator.json", about.dump(2) + "\n"));
  spdlog::info("validator {} with {}", key.id().hex(), device);
  return node.run(signals.stop);
}

}  // namespace
}  // namespace tessera::apps

int main(int argc, char** argv) {
  using namespace tessera::apps;
  CLI::App app("A Tessera validator: re-runs a secretly chosen part of the miners' work and compares.");
  Flags flags;
  app.set_version_flag("--version", version());
  app.add_option("--config", flags.config, "The validator's YAML");
  app.add_option("--set", flags.overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  CLI::App* measuring = app.add_subcommand("calibrate", "Measures how far honest engines are apart here, and proposes thresholds");
  CalibrateOptions calibration{.config = {}, .overrides = {}, .devices = {"auto"}, .threads = {1, 2}};
  measuring->add_option("--config", calibration.config, "The run's YAML")->required();
  measuring->add_option("--set", calibration.overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  measuring->add_option("--device", calibration.devices, "Devices: the first does the work, all check it")->capture_default_str();
  measuring->add_option("--threads", calibration.threads, "Thread counts of the CPU")->capture_default_str();
  measuring->add_option("--steps", calibration.steps, "Local steps of the segment")->capture_default_str()->check(CLI::Range(1, 1000));
  measuring->add_flag("--json", calibration.json, "Every figure as one line of JSON");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (measuring->parsed()) return calibrate(calibration);
  const auto ended = validate(flags, catch_signals());
  if (ended.ok()) {
    spdlog::info("{}", *ended);
    return kExitOk;
  }
  fail("tessera-validator", ended.status());
  const bool restart_mends = absl::IsUnavailable(ended.status()) || absl::IsInternal(ended.status());
  return restart_mends ? kExitRestart : kExitFailure;
}
