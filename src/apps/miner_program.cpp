#include "miner_program.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/daemon.h"
#include "common/paced_engine.h"
#include "common/training_data.h"
#include "miner/devices.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/collective/groups.h"
#include "tessera/config/daemon_config.h"
#include "tessera/model/stage_engine.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"
#include "tessera/net/server.h"
#include "tessera/node/miner_node.h"

namespace tessera::apps {
namespace {

struct Flags {
  std::string config;
  std::vector<std::string> overrides;
};

// What peers are told: `advertise`, with the port that is really listened on where it says 0.
std::string advertised(const config::MinerConfig& config, const net::PeerServer& server) {
  if (config.advertise.empty()) return server.address();
  const size_t colon = config.advertise.rfind(':');
  if (config.advertise.substr(colon + 1) != "0") return config.advertise;
  return config.advertise.substr(0, colon + 1) + std::to_string(server.port());
}

StatusOr<std::string> mine(const Flags& flags, const MinerHooks& hooks, StopFlags& signals) {
  TESSERA_ASSIGN_OR_RETURN(const auto config, config::load_miner_config(flags.config, flags.overrides));
  start_logging({.name = "miner", .file = config.log.file, .level = config.log.level});
  net::prepare_grpc();
  TESSERA_RETURN_IF_ERROR(make_directories(config.directory));
  TESSERA_ASSIGN_OR_RETURN(const KeyPair key, KeyPair::load_or_create(config.key_file));
  TESSERA_ASSIGN_OR_RETURN(const MinerDevices devices, open_devices(config));
  TESSERA_ASSIGN_OR_RETURN(const auto reducer, open_reducer(config, devices));
  const auto signer = std::make_shared<net::RequestSigner>(key);
  TESSERA_ASSIGN_OR_RETURN(const auto orchestrator, net::GrpcOrchestratorLink::create({.orchestrator = config.orchestrator, .signer = signer, .software = version(), .expected_orchestrator = {}}));
  TESSERA_ASSIGN_OR_RETURN(const auto blobs, net::GrpcBlobLink::create({.server = config.orchestrator, .signer = signer, .software = version(), .expected_server = {}}));
  const auto peers = net::GrpcPeerLink::create({.signer = signer});
  const auto donors = net::GrpcDonorLinks::create(signer);
  ShardCache tokens(config.directory + "/shards", *blobs);

  node::MinerOptions options;
  options.key = &key;
  options.directory = config.directory;
  options.reducer = reducer.get();
  options.registration.node = key.id();
  options.registration.incarnation = random_u64();
  options.registration.device = devices.description;
  options.registration.memory_bytes = devices.memory_bytes;
  options.registration.software = version();
  options.registration.wanted_stage = config.wanted_stage;
  options.make_engine = [&](const core::RunSpec& spec, StageIndex stage) -> StatusOr<std::unique_ptr<ports::StageEngine>> {
    TESSERA_ASSIGN_OR_RETURN(auto engine, model::make_stage_engine({.spec = spec, .stage = stage, .device = devices.first, .threads = static_cast<int>(config.threads), .max_in_flight = 256, .pass = model::PassKind::kBest, .box = devices.box}));
    if (hooks.engine) engine = hooks.engine(std::move(engine), spec);
    return paced(std::move(engine), config.pace_ms);
  };
  net::PeerServer* server_to_tell = nullptr;
  options.joined = [&](const std::string& run_id) {
    peers->set_run(run_id);
    donors->set_run(run_id);
    server_to_tell->set_run(run_id);
  };
  const auto wrapped = hooks.orchestrator ? hooks.orchestrator(*orchestrator, key) : nullptr;
  ports::OrchestratorLink* const link = wrapped ? wrapped.get() : orchestrator.get();
  node::MinerNode node(std::move(options), {link, peers.get(), blobs.get(), &tokens, donors.get()});
  TESSERA_ASSIGN_OR_RETURN(const auto server, net::PeerServer::start({.listen = config.listen, .key = key}, &node));
  server_to_tell = server.get();
  node.set_address(advertised(config, *server));
  const nlohmann::json about = {{"address", server->address()}, {"node", key.id().hex()}, {"pid", ::getpid()}, {"device", devices.description}};
  TESSERA_RETURN_IF_ERROR(write_file_atomic(config.directory + "/miner.json", about.dump(2) + "\n"));
  spdlog::info("miner {} on {} with {}", key.id().brief(), server->address(), devices.description);
  auto ended = node.run(signals.stop);
  server->shutdown();
  return ended;
}

}  // namespace

int run_miner(int argc, char** argv, const MinerHooks& hooks) {
  CLI::App app("A Tessera miner: holds a slice of the model's layers and trains it.");
  Flags flags;
  tessera::collective::prepare_process();
  app.set_version_flag("--version", version());
  app.add_option("--config", flags.config, "The miner's YAML");
  app.add_option("--set", flags.overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const auto ended = mine(flags, hooks, catch_signals());
  if (ended.ok()) {
    spdlog::info("{}", *ended);
    return kExitOk;
  }
  fail("tessera-miner", ended.status());
  const bool restart_mends = absl::IsUnavailable(ended.status()) || absl::IsInternal(ended.status());
  return restart_mends ? kExitRestart : kExitFailure;
}

}  // namespace tessera::apps
