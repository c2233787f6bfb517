// tessera-bench optimizer: the optimizer step of a stage.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure_optimizer.h"

namespace tessera::apps {
namespace {

struct OptimizerKindName {
  const char* name;
  core::OptimizerKind kind;
};
constexpr OptimizerKindName kKinds[] = {{"adamw", core::OptimizerKind::kAdamW},
                                        {"nadam", core::OptimizerKind::kNAdam},
                                        {"muon", core::OptimizerKind::kMuon}};

struct OptimizerBenchOptions {
  std::string device = "auto", json;
  std::vector<std::string> slices, kinds;
  model::MeasureOptions measure;
};

nlohmann::json row_of(const std::string& slice, const std::string& kind, const std::string& device,
                      const model::OptimizerMeasurement& measured,
                      const model::Ceilings& ceilings) {
  // The least time in which the bytes could pass and the products be computed, one after the other.
  const double least = measured.copy_seconds + measured.operations / ceilings.operations_per_second;
  return {{"slice", slice},
          {"optimizer", kind},
          {"device", device},
          {"parameters", measured.parameters},
          {"step_ms", measured.seconds * 1e3},
          {"plain_ms", measured.plain_seconds * 1e3},
          {"ratio_to_plain", measured.plain_seconds / measured.seconds},
          {"gb_per_s", measured.bytes / measured.seconds / 1e9},
          {"copy_gb_per_s", measured.bytes / measured.copy_seconds / 1e9},
          {"tflops", measured.operations / measured.seconds / 1e12},
          {"ceiling_tflops", ceilings.operations_per_second / 1e12},
          {"roofline", least / measured.seconds}};
}

Status run_optimizer_bench(const OptimizerBenchOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(options.device));
  TESSERA_ASSIGN_OR_RETURN(const model::Ceilings ceilings, model::measure_ceilings(device));
  std::printf("%-18s %-6s %10s %9s %9s %7s %8s %8s %8s %9s\n", "slice", "kind", "parameters",
              "step ms", "plain ms", "ratio", "GB/s", "copy", "TFLOP/s", "roofline");
  nlohmann::json rows = nlohmann::json::array();
  for (const Slice& slice : chosen_slices(options.slices, device, /*with_whole=*/false)) {
    for (const OptimizerKindName& kind : kKinds) {
      const bool wanted =
          options.kinds.empty() ||
          std::find(options.kinds.begin(), options.kinds.end(), kind.name) != options.kinds.end();
      if (!wanted) continue;
      core::RunSpec spec = spec_of(slice);
      spec.training.optimizer = kind.kind;
      TESSERA_RETURN_IF_ERROR(core::validate(&spec));
      TESSERA_ASSIGN_OR_RETURN(
          const model::OptimizerMeasurement measured,
          model::measure_optimizer(spec, slice.stage(), device, options.measure));
      const nlohmann::json row = row_of(slice.name, kind.name, device, measured, ceilings);
      std::printf("%-18s %-6s %10llu %9.3f %9.3f %6.2fx %8.0f %8.0f %8.1f %8.1f%%\n", slice.name,
                  kind.name, static_cast<unsigned long long>(measured.parameters),
                  measured.seconds * 1e3, measured.plain_seconds * 1e3,
                  row["ratio_to_plain"].get<double>(), row["gb_per_s"].get<double>(),
                  row["copy_gb_per_s"].get<double>(), row["tflops"].get<double>(),
                  row["roofline"].get<double>() * 100);
      std::fflush(stdout);
      rows.push_back(row);
    }
  }
  if (rows.empty()) return invalid_argument("no slice of that name; they are{}", names_of_slices());
  return write_report(options.json, rows);
}

}  // namespace

void add_optimizer_bench(CLI::App* app) {
  auto options = std::make_shared<OptimizerBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "optimizer",
      "The optimizer step of a stage (norm, clipping, update, compute weights) beside torch's own "
      "operators and a copy of the same bytes, in the same run. Slices:" + names_of_slices());
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--slice", options->slices, "Only these; several may be given");
  command->add_option("--optimizer", options->kinds, "Only these; several may be given")
      ->check(CLI::IsMember({"adamw", "nadam", "muon"}));
  command->add_option("--steps", options->measure.steps, "Of a timed block; the best of 3 counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the table there");
  on_call(command, [options] { return run_optimizer_bench(*options); });
}

}  // namespace tessera::apps
