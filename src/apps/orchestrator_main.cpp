// tessera-orchestrator: the hub of a run.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/daemon.h"
#include "common/local_blobs.h"
#include "common/training_data.h"
#include "tessera/base/files.h"
#include "tessera/base/log.h"
#include "tessera/config/daemon_config.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/server.h"
#include "tessera/node/orchestrator_node.h"
#include "tessera/store/checkpoint.h"
#include "tessera/store/journal.h"
#include "tessera/store/ledger_seal.h"

namespace tessera::apps {
namespace {

constexpr uint32_t kBlobAgeMs = 600000;  // of what nobody names, before it is removed

struct Flags {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume;
  bool exit_when_over = false;
};

StatusOr<node::NewRun> load_run(const config::RunConfig& run, const std::string& directory, ports::BlobLink& blobs) {
  TESSERA_ASSIGN_OR_RETURN(const auto dataset, open_dataset(run, directory + "/data"));
  TESSERA_ASSIGN_OR_RETURN(core::DataPlan data, publish_dataset(dataset, blobs));
  return node::NewRun{run.spec, std::move(data)};
}

// What an administrator sends to create a run. It stays beside the journal, for people.
StatusOr<node::NewRun> prepare_run(const std::string& yaml, const std::string& directory, ports::BlobLink& blobs) {
  const std::string path = directory + "/run.yaml";
  TESSERA_RETURN_IF_ERROR(write_file_atomic(path + ".new", yaml));
  TESSERA_ASSIGN_OR_RETURN(const auto run, config::load_run_config(path + ".new", {}));
  TESSERA_ASSIGN_OR_RETURN(node::NewRun made, load_run(run, directory, blobs));
  if (!file_exists(path)) TESSERA_RETURN_IF_ERROR(write_file_atomic(path, yaml));
  return made;
}

node::BlobAccounts accounts_of(store::BlobQuota& quota) {
  return {.open = [&quota](const NodeId& key, const node::BlobShare& share) {
            quota.open(key, share.base_bytes, share.most_bytes, monotonic_now_ms());
          },
          .credit = [&quota](const NodeId& key, uint64_t bytes) { quota.credit(key, bytes); },
          .close = [&quota](const NodeId& key) { quota.close(key); }};
}

Status serve(const Flags& flags, StopFlags& signals) {
  const SplitOverrides overrides = split_overrides(flags.overrides);
  TESSERA_ASSIGN_OR_RETURN(const auto daemon, config::load_orchestrator_config(flags.config, overrides.daemon));
  start_logging({.name = "orchestrator", .file = daemon.log.file, .level = daemon.log.level});
  net::prepare_grpc();
  const std::string& directory = daemon.directory;
  TESSERA_RETURN_IF_ERROR(make_directories(directory));
  TESSERA_ASSIGN_OR_RETURN(const KeyPair key, KeyPair::load_or_create(daemon.key_file));
  TESSERA_ASSIGN_OR_RETURN(const auto store, store::BlobStore::open(directory + "/blobs", daemon.blob_limit_bytes));
  // What nobody names is removed when it is so old, and counts against no key from then on.
  store::BlobQuota quota(kBlobAgeMs);
  LocalBlobs blobs(*store, quota);
  TESSERA_ASSIGN_OR_RETURN(auto seal_key, SealKey::load_or_create(ledger_key_file(daemon.key_file)));
  TESSERA_ASSIGN_OR_RETURN(auto plain_journal, store::open_journal(directory + "/journal.sqlite"));
  TESSERA_ASSIGN_OR_RETURN(const auto ledger, store::LedgerReader::open(directory + "/journal.sqlite"));
  blobs.set_ledger(ledger.get());
  const auto journal = store::sealed_journal(std::move(plain_journal), std::move(seal_key));
  store::CheckpointFolder checkpoints(directory + "/checkpoint");

  node::OrchestratorOptions options;
  if (!daemon.run_config.empty()) {
    TESSERA_ASSIGN_OR_RETURN(const auto run, config::load_run_config(daemon.run_config, overrides.run));
    TESSERA_ASSIGN_OR_RETURN(node::NewRun loaded, load_run(run, directory, blobs));
    options.spec = loaded.spec;
    options.data = std::move(loaded.data);
  } else if (!overrides.run.empty()) {
    return invalid_argument("--set {}: there is no run_config whose key it could override", overrides.run.front());
  }
  options.prepare_run = [&](const std::string& yaml) { return prepare_run(yaml, directory, blobs); };
  if (!flags.resume.empty()) {
    TESSERA_ASSIGN_OR_RETURN(options.resume_from, store::read_checkpoint(flags.resume));
  }
  options.admins = daemon.admins;
  options.admins.push_back(key.id());
  options.validators = daemon.validators;
  options.blob_share_bytes = daemon.blob_share_bytes;
  options.registrations_per_minute = daemon.registrations_per_minute;
  options.exit_when_over = flags.exit_when_over;
  options.snapshot_events = daemon.journal_snapshot_events;
  const std::string name = options.spec ? options.spec->name : "";
  const uint32_t merge_phase_ms = options.spec ? options.spec->timeouts.merge_phase_ms : 0;
  // What a miner is uploading is named by nobody until it is complete: three phases of a merge are ample for that.
  const auto min_age = std::chrono::seconds(std::max<uint32_t>(kBlobAgeMs / 1000, 3 * merge_phase_ms / 1000));
  const auto sweep = [&store, min_age](const std::set<Digest>& keep, TimeMs recent_since_ms, uint64_t recent_bytes) {
    return store->sweep(keep, min_age, {.since_unix_ms = recent_since_ms, .bytes = recent_bytes});
  };
  TESSERA_ASSIGN_OR_RETURN(const auto node, node::OrchestratorNode::open(std::move(options), {&key, journal.get(), &blobs, &checkpoints, sweep, accounts_of(quota)}));
  TESSERA_ASSIGN_OR_RETURN(const auto server, net::OrchestratorServer::start({.listen = daemon.listen, .key = key, .run_id = node->run_id(), .software = version()}, node.get(), &blobs));
  const nlohmann::json about = {{"address", server->address()}, {"node", key.id().hex()}, {"pid", ::getpid()}, {"run_id", to_hex(node->run_id())}};
  TESSERA_RETURN_IF_ERROR(write_file_atomic(directory + "/orchestrator.json", about.dump(2) + "\n"));
  spdlog::info("{} on {}", name.empty() ? "the run of the directory, or none yet," : fmt::format("run '{}'", name), server->address());
  const StatusOr<std::string> ended = node->run(signals.stop, signals.abandon);
  server->shutdown();
  TESSERA_RETURN_IF_ERROR(ended.status());
  spdlog::info("{}", *ended);
  return ok_status();
}

}  // namespace
}  // namespace tessera::apps

int main(int argc, char** argv) {
  using namespace tessera::apps;
  CLI::App app("The hub of a Tessera run: admits miners, leases microbatches, plans merges, keeps the ledger.");
  Flags flags;
  app.set_version_flag("--version", version());
  app.add_option("--config", flags.config, "The orchestrator's YAML; without it every key has its default");
  app.add_option("--set", flags.overrides, "key=value over a key of either YAML")->allow_extra_args(false);
  app.add_option("--resume", flags.resume, "Go on from this checkpoint (a folder of checkpoints: its latest)");
  app.add_flag("--exit-when-over", flags.exit_when_over, "End when the run is finished or stopped");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const tessera::Status status = serve(flags, catch_signals());
  return status.ok() ? kExitOk : fail("tessera-orchestrator", status);
}
