// tessera-bench step: forward + backward + optimizer of a stage.
#include <cstdio>
#include <memory>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure.h"

namespace tessera::apps {
namespace {

struct StepBenchOptions {
  std::string device = "auto", json, recompute = "off", boundary = "none", pass = "best";
  std::vector<std::string> slices;
  bool deterministic = false;
  uint32_t batch = 0;
  model::MeasureOptions measure;
};

StatusOr<model::StepCase> case_of(const Slice& slice, const StepBenchOptions& options) {
  model::StepCase step_case;
  step_case.name = slice.name;
  step_case.stage = slice.stage();
  core::RunSpec& spec = step_case.spec;
  spec = spec_of(slice);
  if (options.batch > 0) spec.training.microbatch_size = options.batch;
  spec.training.deterministic = options.deterministic;
  spec.training.recompute = options.recompute == "block"  ? core::Recompute::kBlock
                            : options.recompute == "full" ? core::Recompute::kFull
                                                          : core::Recompute::kOff;
  if (options.boundary == "anchored") spec.boundary = core::BoundarySpec();
  step_case.pass = options.pass == "autograd" ? model::PassKind::kAutograd
                   : options.pass == "fused"  ? model::PassKind::kFused
                                              : model::PassKind::kBest;
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  return step_case;
}

// The FLOP/s of an H100's or H200's datasheet in dense bf16, which MFU is stated against.
constexpr double kHopperPeak = 989e12;

nlohmann::json row_of(const std::string& name, const std::string& device,
                      const model::StepMeasurement& measured, const model::Ceilings& ceilings,
                      uint32_t in_flight) {
  const double rate = measured.operations / measured.seconds;
  return {{"slice", name},
          {"device", device},
          {"tokens_per_s", static_cast<double>(measured.tokens) / measured.seconds},
          {"mfu", device == "cpu" ? nlohmann::json(nullptr) : nlohmann::json(rate / kHopperPeak)},
          {"tflops", rate / 1e12},
          {"ceiling_tflops", ceilings.operations_per_second / 1e12},
          {"roofline", rate / ceilings.operations_per_second},
          {"ceiling_gb_per_s", ceilings.bytes_per_second / 1e9},
          {"step_ms", measured.seconds * 1e3},
          {"forward_ms", measured.forward_seconds * 1e3},
          {"backward_ms", measured.backward_seconds * 1e3},
          {"launch_ms", measured.launch_seconds * 1e3},
          {"optimizer_ms", measured.optimizer_seconds * 1e3},
          {"parameters", measured.parameters},
          {"in_flight", in_flight},
          {"peak_memory_bytes", measured.peak_memory_bytes}};
}

Status run_step_bench(const StepBenchOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(options.device));
  TESSERA_ASSIGN_OR_RETURN(const model::Ceilings ceilings, model::measure_ceilings(device));
  std::printf("%s: matrix product %.0f TFLOP/s, copy %.0f GB/s\n", device.c_str(),
              ceilings.operations_per_second / 1e12, ceilings.bytes_per_second / 1e9);
  std::printf("%-18s %12s %8s %9s %9s %9s %9s %9s %9s %9s\n", "slice", "tokens/s", "MFU", "roofline",
              "step ms", "forward", "backward", "optimizer", "launch ms", "peak GiB");
  nlohmann::json rows = nlohmann::json::array();
  for (const Slice& slice : chosen_slices(options.slices, device, /*with_whole=*/true)) {
    TESSERA_ASSIGN_OR_RETURN(const model::StepCase step_case, case_of(slice, options));
    TESSERA_ASSIGN_OR_RETURN(const model::StepMeasurement measured,
                             model::measure_step(step_case, device, options.measure));
    const nlohmann::json row = row_of(slice.name, device, measured, ceilings, options.measure.in_flight);
    const double mfu = row["mfu"].is_null() ? 0 : row["mfu"].get<double>();
    std::printf("%-18s %12.0f %7.1f%% %8.1f%% %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n",
                slice.name,
                row["tokens_per_s"].get<double>(), mfu * 100,
                row["roofline"].get<double>() * 100, measured.seconds * 1e3,
                measured.forward_seconds * 1e3, measured.backward_seconds * 1e3,
                measured.optimizer_seconds * 1e3,
                measured.launch_seconds * 1e3,
                static_cast<double>(measured.peak_memory_bytes) / (1 << 30));
    std::fflush(stdout);
    rows.push_back(row);
  }
  if (rows.empty()) return invalid_argument("no slice of that name; --help lists them");
  return write_report(options.json, rows);
}

}  // namespace

void add_step_bench(CLI::App* app) {
  auto options = std::make_shared<StepBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "step",
      "Tokens a second of one stage: forward, backward and an optimizer step, beside the rate of a "
      "large matrix product measured in the same run. Slices:" + names_of_slices());
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--slice", options->slices, "Only these; several may be given");
  command->add_option("--batch", options->batch, "Sequences of a microbatch; 0: the slice's own");
  command->add_option("--boundary", options->boundary, "Around slices")
      ->check(CLI::IsMember({"none", "anchored"}))
      ->capture_default_str();
  command->add_option("--recompute", options->recompute, "As training.recompute")
      ->check(CLI::IsMember({"off", "block", "full"}))
      ->capture_default_str();
  command->add_option("--pass", options->pass, "best, fused (by hand) or autograd")
      ->check(CLI::IsMember({"best", "fused", "autograd"}))
      ->capture_default_str();
  command->add_option("--in-flight", options->measure.in_flight,
                      "Microbatches between forward and backward at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_flag("--deterministic", options->deterministic, "As training.deterministic");
  command->add_option("--steps", options->measure.steps, "Of a timed block; the best of 3 counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the table there");
  on_call(command, [options] { return run_step_bench(*options); });
}

}  // namespace tessera::apps
