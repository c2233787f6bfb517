#include "tessera/config/daemon_config.h"

#include <algorithm>

#include "config/field.h"
#include "config/loader.h"

namespace tessera::config {
namespace {

constexpr uint64_t kMinBlobLimitBytes = uint64_t{16} << 20;
constexpr uint64_t kMinBlobShareBytes = 1 << 20;
constexpr uint32_t kMaxRegistrations = 1000000000;
constexpr uint64_t kMinMemoryBytes = uint64_t{64} << 20;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxPaceMs = 60000;
constexpr uint32_t kMaxStages = 64;
constexpr size_t kMaxGpus = 64;
constexpr uint32_t kMaxZeroStage = 3;
constexpr uint32_t kMaxSnapshotEvents = 1000000000;

void add_log(LogConfig* log, FieldTable* table) {
  const std::vector<std::pair<std::string, std::string>> levels = {{"trace", "trace"},
                                                                   {"debug", "debug"},
                                                                   {"info", "info"},
                                                                   {"warn", "warn"},
                                                                   {"error", "error"}};
  table->push_back(field("log.level", Choice<std::string>{&log->level, levels}, "",
                         "the least grave messages that are logged"));
  table->push_back(
      field("log.file", &log->file, "", "rotated and bounded on disk; empty: stderr only"));
}

FieldTable table_of(OrchestratorConfig* config) {
  FieldTable table = {
      field("listen", Address{&config->listen, false, true}, "",
            "where miners and tools connect; port 0: the system picks one"),
      field("directory", &config->directory, "not empty", "ledger, blobs and checkpoints"),
      field("run_config", &config->run_config, "", "path of the run's YAML; empty: the run of the directory, or the one that 'tesseractl run create' makes"),
      field("key_file", &config->key_file, "",
            "the orchestrator's secret key, made if absent; empty: orchestrator.key in the "
            "directory"),
      field("blob_limit_bytes", ByteCount{&config->blob_limit_bytes}, "16MiB or more",
            "of the blob store on disk; what goes beyond is refused"),
      field("blob_share_bytes", ByteCount{&config->blob_share_bytes}, "1MiB or more",
            "that each miner's key may have in the blob store beyond what the run asks of it; what goes beyond is refused"),
      field("registrations_per_minute", &config->registrations_per_minute, "0 to 1000000000",
            "new keys that are admitted from one address in a minute; others are put off; 0: any number"),
      field("journal.snapshot_events", &config->journal_snapshot_events, "0 to 1000000000",
            "entries of the ledger between two snapshots of the state in it: a restart reads the "
            "newest one and replays what came after; 0: none, a restart replays everything"),
      field("admins", &config->admins, "", "public keys that may pause, stop and assign"),
      field("validators", &config->validators, "", "public keys of validators: their verdicts count"),
  };
  add_log(&config->log, &table);
  return table;
}

FieldTable table_of(MinerConfig* config) {
  FieldTable table = {
      field("orchestrator", Address{&config->orchestrator, true, false}, "required",
            "where the orchestrator listens"),
      field("listen", Address{&config->listen, false, true}, "",
            "where peers connect; port 0: the system picks one"),
      field("advertise", Address{&config->advertise, true, true}, "",
            "what peers are told instead of listen, behind NAT or when listening on every "
            "interface; port 0: the "
            "port of listen; empty: listen"),
      field("directory", &config->directory, "not empty", "key, local state and caches"),
      field("key_file", &config->key_file, "",
            "the miner's secret key, made if absent; empty: miner.key in the directory"),
      field("device", &config->device, "", "auto: a CUDA device if there is one, else the CPU"),
      field("reduce_device", Choice<MinerConfig::ReduceDevice>{&config->reduce_device,
                             {{"auto", MinerConfig::ReduceDevice::kAuto}, {"cpu", MinerConfig::ReduceDevice::kCpu}, {"gpu", MinerConfig::ReduceDevice::kGpu}}},
            "", "where the miner reduces its shards of a merge, to the same bits: on the CPU, or on the first GPU of device or gpus; auto: "
            "trimmed means (merge.trim_share) on a GPU if there is one, the rest on the CPU"),
      field("gpus", &config->gpus, "at most 64, each once",
            "several GPUs that are one miner, by their numbers; empty: the one of device; with device cpu: as many workers "
            "on the CPU, for tests"),
      field("zero_stage", &config->zero_stage, "0 to 3",
            "what is sharded over the GPUs: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too; "
            "'tesseractl plan box' says which one fits"),
      field("threads", &config->threads, "0 to 1024", "compute threads of the CPU; 0: automatic"),
      field("compute.pace_ms", &config->pace_ms, "0 to 60000",
            "for tests and to leave the machine to others: a forward and a backward each take at "
            "least this many milliseconds; the rest is slept"),
      field("memory_bytes", ByteCount{&config->memory_bytes}, "0, or 64MiB or more",
            "device memory that the miner may use, of each GPU; 0: automatic"),
      field("wanted_stage", NumberOrAny{&config->wanted_stage}, "any, or 0 to 63",
            "ask for this stage; any: wherever it is needed most"),
  };
  add_log(&config->log, &table);
  return table;
}

FieldTable table_of(ValidatorConfig* config) {
  FieldTable table = {
      field("orchestrator", Address{&config->orchestrator, true, false}, "required",
            "where the orchestrator listens"),
      field("directory", &config->directory, "not empty", "key and caches"),
      field("key_file", &config->key_file, "",
            "the validator's secret key, made if absent; empty: validator.key in the directory. Its "
            "public half must be among the orchestrator's 'validators'"),
      field("device", &config->device, "", "auto: a CUDA device if there is one, else the CPU"),
      field("threads", &config->threads, "0 to 1024", "compute threads of the CPU; 0: automatic"),
  };
  add_log(&config->log, &table);
  return table;
}

Status check_directory(const std::string& directory) {
  if (!directory.empty()) return ok_status();
  return invalid_argument("directory: empty; name a folder, it is made if absent");
}

Status validate_orchestrator(const OrchestratorConfig& config) {
  TESSERA_RETURN_IF_ERROR(check_directory(config.directory));
  if (config.journal_snapshot_events > kMaxSnapshotEvents) {
    return invalid_argument("journal.snapshot_events: {} is not allowed; it must be 0 to {}",
                            config.journal_snapshot_events, kMaxSnapshotEvents);
  }
  if (config.registrations_per_minute > kMaxRegistrations) {
    return invalid_argument("registrations_per_minute: {} is not allowed; it must be 0 to {}", config.registrations_per_minute,
                            kMaxRegistrations);
  }
  if (config.blob_share_bytes < kMinBlobShareBytes) {
    return invalid_argument("blob_share_bytes: {} is not allowed; it must be 1MiB or more", config.blob_share_bytes);
  }
  if (config.blob_limit_bytes < kMinBlobLimitBytes) {
    return invalid_argument("blob_limit_bytes: {} is not allowed; it must be 16MiB or more",
                            config.blob_limit_bytes);
  }
  return ok_status();
}

Status check_gpus(const MinerConfig& config) {
  if (config.zero_stage > kMaxZeroStage) {
    return invalid_argument("zero_stage: {} is not allowed; it must be 0 to {}", config.zero_stage, kMaxZeroStage);
  }
  if (config.gpus.size() > kMaxGpus) {
    return invalid_argument("gpus: {} of them; at most {} are allowed", config.gpus.size(), kMaxGpus);
  }
  if (config.zero_stage > 0 && config.gpus.size() < 2) {
    return invalid_argument("zero_stage: {} shards over several GPUs; name them in 'gpus', or leave zero_stage out",
                            config.zero_stage);
  }
  for (size_t i = 0; i < config.gpus.size(); ++i) {
    if (std::find(config.gpus.begin(), config.gpus.begin() + static_cast<std::ptrdiff_t>(i), config.gpus[i]) !=
        config.gpus.begin() + static_cast<std::ptrdiff_t>(i)) {
      return invalid_argument("gpus: {} is named twice", config.gpus[i]);
    }
  }
  if (!config.gpus.empty() && config.device.kind == Device::Kind::kCuda) {
    return invalid_argument("gpus: device names a GPU too; leave device out");
  }
  return ok_status();
}

Status validate_miner(const MinerConfig& config) {
  if (config.orchestrator.empty()) {
    return invalid_argument(
        "orchestrator: required; give the address host:port of the run's orchestrator");
  }
  TESSERA_RETURN_IF_ERROR(check_directory(config.directory));
  TESSERA_RETURN_IF_ERROR(check_gpus(config));
  if (config.threads > kMaxThreads) {
    return invalid_argument("threads: {} is not allowed; it must be 0 to {}", config.threads,
                            kMaxThreads);
  }
  if (config.pace_ms > kMaxPaceMs) {
    return invalid_argument("compute.pace_ms: {} is not allowed; it must be 0 to {}",
                            config.pace_ms, kMaxPaceMs);
  }
  if (config.memory_bytes != 0 && config.memory_bytes < kMinMemoryBytes) {
    return invalid_argument("memory_bytes: {} is not allowed; it must be 0, or 64MiB or more",
                            config.memory_bytes);
  }
  if (config.wanted_stage && *config.wanted_stage >= kMaxStages) {
    return invalid_argument("wanted_stage: {} is not allowed; it must be any, or 0 to {}",
                            *config.wanted_stage, kMaxStages - 1);
  }
  return ok_status();
}

Status validate_validator(const ValidatorConfig& config) {
  if (config.orchestrator.empty()) {
    return invalid_argument("orchestrator: required; give the address host:port of the run's orchestrator");
  }
  TESSERA_RETURN_IF_ERROR(check_directory(config.directory));
  if (config.threads > kMaxThreads) {
    return invalid_argument("threads: {} is not allowed; it must be 0 to {}", config.threads, kMaxThreads);
  }
  return ok_status();
}

}  // namespace

std::string name_of(const Device& device) {
  if (device.kind == Device::Kind::kAuto) return "auto";
  if (device.kind == Device::Kind::kCpu) return "cpu";
  return device.index ? fmt::format("cuda:{}", *device.index) : "cuda";
}

StatusOr<OrchestratorConfig> load_orchestrator_config(const std::string& path,
                                                      const std::vector<std::string>& overrides) {
  OrchestratorConfig config;
  Loader loader(table_of(&config), path);
  TESSERA_RETURN_IF_ERROR(loader.load(overrides));
  TESSERA_RETURN_IF_ERROR(loader.locate(validate_orchestrator(config)));
  if (config.key_file.empty()) config.key_file = config.directory + "/orchestrator.key";
  return config;
}

StatusOr<MinerConfig> load_miner_config(const std::string& path,
                                        const std::vector<std::string>& overrides) {
  MinerConfig config;
  Loader loader(table_of(&config), path);
  TESSERA_RETURN_IF_ERROR(loader.load(overrides));
  TESSERA_RETURN_IF_ERROR(loader.locate(validate_miner(config)));
  if (config.key_file.empty()) config.key_file = config.directory + "/miner.key";
  return config;
}

StatusOr<ValidatorConfig> load_validator_config(const std::string& path,
                                                const std::vector<std::string>& overrides) {
  ValidatorConfig config;
  Loader loader(table_of(&config), path);
  TESSERA_RETURN_IF_ERROR(loader.load(overrides));
  TESSERA_RETURN_IF_ERROR(loader.locate(validate_validator(config)));
  if (config.key_file.empty()) config.key_file = config.directory + "/validator.key";
  return config;
}

std::string validator_config_reference_markdown() {
  ValidatorConfig defaults;
  return write_reference(table_of(&defaults));
}

std::string orchestrator_config_reference_markdown() {
  OrchestratorConfig defaults;
  return write_reference(table_of(&defaults));
}

std::string miner_config_reference_markdown() {
  MinerConfig defaults;
  return write_reference(table_of(&defaults));
}

}  // namespace tessera::config
