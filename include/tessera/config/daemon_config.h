// The configuration of one daemon on one machine: YAML to checked structs. Errors, overrides and
// the empty path are as in run_config.h. Relative paths are relative to the folder the program was
// started in. All functions are thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::config {

struct LogConfig {
  std::string level = "info";  // trace, debug, info, warn, error
  std::string file;            // rotated, bounded on disk; empty: stderr only
};

struct OrchestratorConfig {
  std::string listen = "127.0.0.1:0";     // host:port; port 0: the system picks one
  std::string directory = "tessera-run";  // ledger, blobs and checkpoints
  std::string run_config;                 // path of the run's YAML; empty: that of the directory, or one to be created
  std::string key_file;  // empty in the YAML: <directory>/orchestrator.key; made if absent
  uint64_t blob_limit_bytes = uint64_t{64} << 30;  // of the blob store on disk; full means refuse
  uint64_t blob_share_bytes = uint64_t{64} << 20;  // that every key may store without being asked for it
  uint32_t registrations_per_minute = 120;         // of new keys from one address; 0: any number
  uint32_t journal_snapshot_events = 100000;       // entries between two snapshots of the state; 0: none
  std::vector<NodeId> admins;                      // public keys that may pause, stop and assign
  std::vector<NodeId> validators;                  // public keys of validators
  LogConfig log;
};

struct Device {
  enum class Kind { kAuto, kCpu, kCuda };  // auto: the first CUDA device, else the CPU
  Kind kind = Kind::kAuto;
  std::optional<uint32_t> index;  // of the CUDA device; none: the first that is free
  bool operator==(const Device&) const = default;
};
// As in the YAML: "auto", "cpu", "cuda", "cuda:1".
std::string name_of(const Device& device);

struct MinerConfig {
  std::string orchestrator;  // host:port; required
  // host:port that peers connect to. Port 0: the system picks one.
  std::string listen = "127.0.0.1:0";
  // host:port that peers are told, if it is not `listen` (behind NAT, or listening on every
  // interface). Port 0: the port of `listen`. Empty: `listen`.
  std::string advertise;
  std::string directory = "tessera-miner";  // key, local state, caches
  std::string key_file;  // empty in the YAML: <directory>/miner.key; made if absent
  Device device;
  enum class ReduceDevice { kAuto, kCpu, kGpu };
  ReduceDevice reduce_device = ReduceDevice::kAuto;  // of merges' shards
  // GPUs that are one miner, by their numbers; empty: `device` alone. With device cpu: as many workers on the CPU.
  std::vector<uint32_t> gpus;
  uint32_t zero_stage = 0;               // of several: what is sharded over them
  uint32_t threads = 0;                  // compute threads of the CPU; 0: automatic
  // For tests and limits: a forward and a backward each take at least this long; the rest is slept.
  uint32_t pace_ms = 0;
  uint64_t memory_bytes = 0;             // device memory the miner may use; 0: automatic
  std::optional<uint32_t> wanted_stage;  // ask for this stage; none: wherever it is needed most
  LogConfig log;
};

struct ValidatorConfig {
  std::string orchestrator;  // host:port; required
  std::string directory = "tessera-validator";  // key, caches
  std::string key_file;  // empty in the YAML: <directory>/validator.key; made if absent
  Device device;
  uint32_t threads = 0;  // compute threads of the CPU; 0: automatic
  LogConfig log;
};

StatusOr<OrchestratorConfig> load_orchestrator_config(const std::string& path,
                                                      const std::vector<std::string>& overrides);
StatusOr<MinerConfig> load_miner_config(const std::string& path,
                                        const std::vector<std::string>& overrides);
StatusOr<ValidatorConfig> load_validator_config(const std::string& path,
                                                const std::vector<std::string>& overrides);

// Markdown tables of every key: type, default, allowed values, meaning.
std::string orchestrator_config_reference_markdown();
std::string miner_config_reference_markdown();
std::string validator_config_reference_markdown();

}  // namespace tessera::config
