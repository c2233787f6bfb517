#include "tessera/config/scenario.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "config/run_table.h"
#include "config/scenario_values.h"

namespace tessera::config {
namespace {

void add_world(SimSpec* sim, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("sim.seed", &sim->seed, "", "of everything random: one seed is one run"),
          field("sim.duration_s", &sim->duration_s, "above 0 and at most 1e8",
                "simulated seconds; less if the run is finished before"),
          field("sim.participants", &sim->participants, "0 to 1024",
                "miners of every stage, over pipeline.miners_per_stage; 0: as many as that says"),
          field("sim.dead_share", &sim->dead_share, "0 to 1",
                "of each stage's participants of its first merge: killed for good when its shards "
                "are handed out"),
          field("sim.start_spread_s", &sim->start_spread_s, "0 to 1e8",
                "the first miners start at random within this time"),
          field("sim.restart_s", &sim->restart_s, "0.001 to 1e8",
                "after which a process that ended by itself is started again"),
          field("sim.tick_ms", &sim->tick_ms, "1 to 1e6",
                "how often miners and orchestrator look at their deadlines; the daemons take 20"),
          field("sim.commit_ms", &sim->commit_ms, "0 to 1e6",
                "of the orchestrator's journal, for one transaction"),
          field("sim.check", &sim->check, "",
                "check every invariant after every event of the orchestrator; costs time"),
          field("sim.keep_journal", &sim->keep_journal, "",
                "keep the journal in memory: for crashes of the orchestrator, and to replay it at "
                "the end"),
          field("sim.snapshot_events", &sim->snapshot_events, "",
                "journal entries between two snapshots of the orchestrator's state; 0: none"),
          field("sim.max_events", &sim->max_events, "1 to 10^15",
                "the simulation ends with an error above it"),
      });
}

void add_compute(SimSpec* sim, FieldTable* table) {
  table->insert(table->end(),
                {
                    field("sim.speeds", &sim->speeds, "each 0.001 to 1000",
                          "of a stage's miners, over and over: 2 computes twice as fast as 1"),
                    field("sim.memory_gib", &sim->memory_gib, "each above 0 and at most 1e6",
                          "that a stage's miners announce, over and over; []: none"),
                    field("sim.forward_ms_per_layer", &sim->forward_ms_per_layer, "0.001 to 1e6",
                          "of one microbatch at speed 1"),
                    field("sim.backward_ms_per_layer", &sim->backward_ms_per_layer, "0.001 to 1e6",
                          "of one microbatch at speed 1"),
                    field("sim.compute_jitter", &sim->compute_jitter, "0 to 0.99",
                          "every job takes 1 - this to 1 + this of its time"),
                    field("sim.optimizer_ms", &sim->optimizer_ms, "0 to 1e6",
                          "of an optimizer step, and of every other short job, at speed 1"),
                });
}

void add_network(SimSpec* sim, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("sim.latency_ms", &sim->latency_ms, "0.001 to 1e6", "one way"),
          field("sim.latency_jitter_ms", &sim->latency_jitter_ms, "0 to 1e6",
                "at most this on top, for every message"),
          field("sim.upload_mbit", &sim->upload_mbit, "0 to 1e6",
                "of every miner; messages queue for it; 0: as much as they want"),
          field("sim.download_mbit", &sim->download_mbit, "0 to 1e6", "of every miner"),
          field("sim.loss", &sim->loss, "0 to 0.9", "share of messages that are lost"),
          field("sim.duplication", &sim->duplication, "0 to 0.9",
                "share of frames and reports that arrive twice"),
          field("sim.reordering", &sim->reordering, "0 to 0.9",
                "share of messages that are overtaken by others"),
          field("sim.reordering_ms", &sim->reordering_ms, "0 to 1e6",
                "at most this is how late those come"),
          field("sim.frame_bytes", ByteCount{&sim->frame_bytes}, "",
                "of a boundary frame, for the network's time; 0: what the run's frames have"),
          field("sim.stage_bytes", ByteCount{&sim->stage_bytes}, "",
                "of a stage's weights, for the network's time; 0: 4 a value"),
      });
}

FieldTable sim_table(SimSpec* sim) {
  FieldTable table;
  add_world(sim, &table);
  add_compute(sim, &table);
  add_network(sim, &table);
  table.insert(table.end(),
               {
                   field("sim.job_failures", &sim->job_failures, "0 to 0.9",
                         "share of compute and background jobs that fail"),
                   field("sim.lies", &sim->lies, "0 to 0.9",
                         "share of reduced shards that their miner falsifies"),
                   field("sim.lost_uploads", &sim->lost_uploads, "0 to 0.9",
                         "share of a merge's uploads that nobody can read"),
                   field("sim.cheaters", &sim->cheaters, "noise, flip, scale, stale, lazy, unavailable, pair, forge, slander",
                         "how the first miners cheat in every merge: upload noise, the opposite, a hundredfold or an "
                         "old upload; commit reductions without computing them; call uploads unreadable; and, on just the shards "
                         "that two of a kind own together: 'pair' commit what neither has, 'forge' make and store a false "
                         "reduction, 'slander' measure falsely"),
                   field("sim.faults", &sim->faults, "", "what happens and when: see above"),
                   field("sim.faults_until_s", &sim->faults_until_s, "0 to 1e8",
                         "then everything is mended, and nothing random fails any more; 0: never"),
               });
  return table;
}

struct Range {
  const char* key;
  double value;
  double least;
  double most;
};

Status validate_ranges(const SimSpec& sim) {
  const Range ranges[] = {
      {"sim.duration_s", sim.duration_s, 0.001, 1e8},
      {"sim.participants", static_cast<double>(sim.participants), 0, 1024},
      {"sim.dead_share", sim.dead_share, 0, 1},
      {"sim.start_spread_s", sim.start_spread_s, 0, 1e8},
      {"sim.restart_s", sim.restart_s, 0.001, 1e8},
      {"sim.tick_ms", sim.tick_ms, 1, 1e6},
      {"sim.commit_ms", sim.commit_ms, 0, 1e6},
      {"sim.max_events", static_cast<double>(sim.max_events), 1, 1e15},
      {"sim.forward_ms_per_layer", sim.forward_ms_per_layer, 0.001, 1e6},
      {"sim.backward_ms_per_layer", sim.backward_ms_per_layer, 0.001, 1e6},
      {"sim.compute_jitter", sim.compute_jitter, 0, 0.99},
      {"sim.optimizer_ms", sim.optimizer_ms, 0, 1e6},
      {"sim.latency_ms", sim.latency_ms, 0.001, 1e6},
      {"sim.latency_jitter_ms", sim.latency_jitter_ms, 0, 1e6},
      {"sim.upload_mbit", sim.upload_mbit, 0, 1e6},
      {"sim.download_mbit", sim.download_mbit, 0, 1e6},
      {"sim.loss", sim.loss, 0, 0.9},
      {"sim.duplication", sim.duplication, 0, 0.9},
      {"sim.reordering", sim.reordering, 0, 0.9},
      {"sim.reordering_ms", sim.reordering_ms, 0, 1e6},
      {"sim.job_failures", sim.job_failures, 0, 0.9},
      {"sim.lies", sim.lies, 0, 0.9},
      {"sim.lost_uploads", sim.lost_uploads, 0, 0.9},
      {"sim.faults_until_s", sim.faults_until_s, 0, 1e8},
  };
  for (const Range& range : ranges) {
    if (range.value >= range.least && range.value <= range.most) continue;
    return invalid_argument("{}: {} is not allowed; it must be {} to {}", range.key, range.value,
                            range.least, range.most);
  }
  return ok_status();
}

Status validate_lists(const SimSpec& sim, const core::RunSpec& spec) {
  if (sim.speeds.empty()) return invalid_argument("sim.speeds: empty; give at least one");
  for (const double speed : sim.speeds) {
    if (!(speed >= 0.001 && speed <= 1000)) {
      return invalid_argument("sim.speeds: {} is not allowed; each must be 0.001 to 1000", speed);
    }
  }
  for (const std::string& kind : sim.cheaters) {
    const std::set<std::string> kinds = {"noise", "flip", "scale", "stale", "lazy", "unavailable", "pair", "forge", "slander"};
    if (kinds.count(kind) == 0) {
      return invalid_argument("sim.cheaters: '{}' is not allowed; known: {}", kind, fmt::join(kinds, ", "));
    }
  }
  for (const double memory : sim.memory_gib) {
    if (!(memory > 0 && memory <= 1e6)) {
      return invalid_argument(
          "sim.memory_gib: {} is not allowed; each must be above 0 and at most 1e6", memory);
    }
  }
  for (const Fault& fault : sim.faults) {
    if (fault.stage && *fault.stage >= spec.pipeline.stages) {
      return invalid_argument("sim.faults: stage {} of a run with {} stages", *fault.stage,
                              spec.pipeline.stages);
    }
    if (fault.kind == FaultKind::kOrchestratorCrash && !sim.keep_journal) {
      return invalid_argument(
          "sim.keep_journal: an orchestrator that crashes needs its journal; set it to true");
    }
  }
  return ok_status();
}

}  // namespace

StatusOr<Scenario> load_scenario(const std::string& path,
                                 const std::vector<std::string>& overrides) {
  Scenario scenario;
  FieldTable table = run_table(&scenario.run);
  const FieldTable sim = sim_table(&scenario.sim);
  table.insert(table.end(), sim.begin(), sim.end());
  Loader loader(std::move(table), path);
  TESSERA_RETURN_IF_ERROR(loader.load(overrides));
  TESSERA_RETURN_IF_ERROR(loader.locate(validate_ranges(scenario.sim)));
  if (scenario.sim.participants > 0) {
    scenario.run.spec.pipeline.miners_per_stage = scenario.sim.participants;
  }
  TESSERA_RETURN_IF_ERROR(check_run(loader, &scenario.run));
  TESSERA_RETURN_IF_ERROR(loader.locate(validate_lists(scenario.sim, scenario.run.spec)));
  return scenario;
}

std::string scenario_reference_markdown() {
  SimSpec defaults;
  return write_reference(sim_table(&defaults));
}

}  // namespace tessera::config
