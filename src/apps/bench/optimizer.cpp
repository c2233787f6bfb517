// tessera-bench optimizer: the optimizer step of a stage.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure_optimizer.h"

namespace tessera::apps {
namespace {

struct OptimizerBenchOptions {
  SliceBenchOptions over;
  std::vector<std::string> kinds;  // none: all
};

nlohmann::json row_of(const std::string& slice, const std::string& kind, const BenchDevice& device,
                      const model::OptimizerMeasurement& measured) {
  // The least time in which the bytes could pass and the products be computed, one after the other.
  const double least = measured.copy_seconds + measured.operations / device.ceilings.operations_per_second;
  return {{"slice", slice},
          {"optimizer", kind},
          {"device", device.name},
          {"parameters", measured.parameters},
          {"step_ms", measured.seconds * 1e3},
          {"plain_ms", measured.plain_seconds * 1e3},
          {"ratio_to_plain", measured.plain_seconds / measured.seconds},
          {"gb_per_s", measured.bytes / measured.seconds / 1e9},
          {"copy_gb_per_s", measured.bytes / measured.copy_seconds / 1e9},
          {"tflops", measured.operations / measured.seconds / 1e12},
          {"ceiling_tflops", device.ceilings.operations_per_second / 1e12},
          {"roofline", least / measured.seconds}};
}

Status measure_slice(const OptimizerBenchOptions& options, const Slice& slice, const BenchDevice& device,
                     nlohmann::json* rows) {
  for (const auto& [name, kind] : optimizer_names()) {
    const auto& kinds = options.kinds;
    if (!kinds.empty() && std::find(kinds.begin(), kinds.end(), name) == kinds.end()) continue;
    core::RunSpec spec = spec_of(slice);
    spec.training.optimizer = kind;
    TESSERA_RETURN_IF_ERROR(core::validate(&spec));
    TESSERA_ASSIGN_OR_RETURN(const model::OptimizerMeasurement measured,
                             model::measure_optimizer(spec, slice.stage(), device.name, options.over.measure));
    const nlohmann::json row = row_of(slice.name, name, device, measured);
    std::printf("%-18s %-6s %10llu %9.3f %9.3f %6.2fx %8.0f %8.0f %8.1f %8.1f%%\n", slice.name, name.c_str(),
                static_cast<unsigned long long>(measured.parameters), measured.seconds * 1e3,
                measured.plain_seconds * 1e3, row["ratio_to_plain"].get<double>(), row["gb_per_s"].get<double>(),
                row["copy_gb_per_s"].get<double>(), row["tflops"].get<double>(), row["roofline"].get<double>() * 100);
    rows->push_back(row);
  }
  return ok_status();
}

Status run_optimizer_bench(const OptimizerBenchOptions& options) {
  const std::string header = fmt::format("{:<18} {:<6} {:>10} {:>9} {:>9} {:>7} {:>8} {:>8} {:>8} {:>9}", "slice", "kind",
                                         "parameters", "step ms", "plain ms", "ratio", "GB/s", "copy", "TFLOP/s",
                                         "roofline");
  return run_over_slices(options.over, header, [&](const Slice& slice, const BenchDevice& device, nlohmann::json* rows) {
    return measure_slice(options, slice, device, rows);
  });
}

}  // namespace

void add_optimizer_bench(CLI::App* app) {
  auto options = std::make_shared<OptimizerBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "optimizer",
      "The optimizer step of a stage (norm, clipping, update, compute weights) beside torch's own "
      "operators and a copy of the same bytes, in the same run");
  add_slice_options(command, &options->over);
  command->add_option("--optimizer", options->kinds, "Only these; several may be given")
      ->check(CLI::IsMember(optimizer_names()));
  on_call(command, [options] { return run_optimizer_bench(*options); });
}

}  // namespace tessera::apps
