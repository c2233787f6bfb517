// A scenario of the simulator: the configuration of a run, and under `sim` the world it runs in.
// One YAML file holds both; errors, overrides and the empty path are as in run_config.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/config/run_config.h"

namespace tessera::config {

enum class FaultKind : uint8_t {
  kKill,       // a process ends at once; a new one starts for_s later (0: never)
  kFreeze,     // a process stands still for for_s
  kPartition,  // a set of miners and the rest, the orchestrator among them, hear nothing of each
               // other for for_s
  kDrain,      // a miner leaves in an orderly way; a new process starts for_s later (0: never)
  kJoin,       // new miners come
  kOrchestratorCrash,  // the orchestrator ends at once and starts again from its journal for_s
                       // later
  kPause,              // an operator pauses the run and resumes it for_s later
  kCheckpoint,         // an operator asks for a checkpoint
  kOrder,              // an operator assigns or drains some miner, or changes a setting or the stages
};
const char* name_of(FaultKind kind);

// Either once, at `at_s`, for exactly for_s; or again and again with random pauses of `every_s` on
// average (uniform in 0.5 to 1.5 of it) and random durations of for_s on average (uniform in 0 to 2
// of it).
struct Fault {
  FaultKind kind = FaultKind::kKill;
  std::optional<double> at_s;
  std::optional<double> every_s;
  double from_s = 0;              // of every_s: the first pause begins here
  std::optional<double> until_s;  // of every_s; none: sim.faults_until_s
  double for_s = 0;
  std::optional<uint32_t> stage;  // victims are of this stage; none: of any
  uint32_t count = 1;             // victims
  std::optional<double> share;    // of the miners (of the stage), instead of a count
  bool operator==(const Fault&) const = default;
};

struct SimSpec {
  uint64_t seed = 1;
  double duration_s = 600;
  uint32_t participants = 0;
  double dead_share = 0;
  std::vector<double> speeds = {1};
  std::vector<double> memory_gib = {};
  double forward_ms_per_layer = 10;
  double backward_ms_per_layer = 20;
  double compute_jitter = 0.05;
  double optimizer_ms = 1;
  double latency_ms = 20;
  double latency_jitter_ms = 5;
  double upload_mbit = 0;
  double download_mbit = 0;
  double loss = 0;
  double duplication = 0;
  double reordering = 0;
  double reordering_ms = 200;
  uint64_t frame_bytes = 0;
  uint64_t stage_bytes = 0;
  double start_spread_s = 1;
  double restart_s = 1;
  double tick_ms = 20;
  double commit_ms = 2;
  double job_failures = 0;
  double lies = 0;
  double lost_uploads = 0;
  std::vector<std::string> cheaters = {};
  std::vector<Fault> faults;
  double faults_until_s = 0;
  bool check = true;
  bool keep_journal = true;
  uint64_t snapshot_events = 100000;
  uint64_t max_events = 4000000000;
};

struct Scenario {
  RunConfig run;  // validated; pipeline.miners_per_stage is sim.participants if that is given
  SimSpec sim;
};

StatusOr<Scenario> load_scenario(const std::string& path,
                                 const std::vector<std::string>& overrides);

// Markdown table of the keys under `sim`.
std::string scenario_reference_markdown();

}  // namespace tessera::config
