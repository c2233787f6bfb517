// tessera-bench step: forward + backward + optimizer of a stage.
#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "apps/bench/bench.h"
#include "apps/bench/merge_reducers.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure.h"

namespace tessera::apps {
namespace {

struct StepBenchOptions {
  SliceBenchOptions over{.with_whole = true};
  std::string boundary = "none", pass = "best";
  core::Recompute recompute = core::Recompute::kOff;
  bool deterministic = false, fp8 = false;
  uint32_t batch = 0;
  uint32_t beside_merge = 0;  // uploads
  double trim_share = 0;
};

StatusOr<model::StepCase> case_of(const Slice& slice, const StepBenchOptions& options) {
  model::StepCase step_case;
  step_case.name = slice.name;
  step_case.stage = slice.stage();
  core::RunSpec& spec = step_case.spec;
  spec = spec_of(slice);
  if (options.batch > 0) spec.training.microbatch_size = options.batch;
  spec.training.deterministic = options.deterministic;
  spec.training.recompute = options.recompute;
  if (options.fp8) spec.training.matrix_products = core::MatrixProducts::kFp8;
  if (options.boundary == "anchored") spec.boundary = core::BoundarySpec();
  step_case.pass = options.pass == "autograd" ? model::PassKind::kAutograd
                   : options.pass == "fused"  ? model::PassKind::kFused
                                              : model::PassKind::kBest;
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  return step_case;
}

// The FLOP/s of an H100's or H200's datasheet in dense bf16, which MFU is stated against.
constexpr double kHopperPeak = 989e12;

nlohmann::json row_of(const std::string& name, const BenchDevice& device,
                      const model::StepMeasurement& measured, double sustained, uint32_t in_flight, bool fp8) {
  const double rate = measured.operations / measured.seconds;
  return {{"slice", name},
          {"device", device.name},
          {"tokens_per_s", static_cast<double>(measured.tokens) / measured.seconds},
          {"mfu", device.name == "cpu" ? nlohmann::json(nullptr) : nlohmann::json(rate / kHopperPeak)},
          {"tflops", rate / 1e12},
          {"ceiling_tflops", device.ceilings.operations_per_second / 1e12},
          {"roofline", rate / device.ceilings.operations_per_second},
          {"sustained_ceiling_tflops", sustained / 1e12},
          {"sustained_roofline", rate / sustained},
          {"ceiling_gb_per_s", device.ceilings.bytes_per_second / 1e9},
          {"step_ms", measured.seconds * 1e3},
          {"forward_ms", measured.forward_seconds * 1e3},
          {"backward_ms", measured.backward_seconds * 1e3},
          {"launch_ms", measured.launch_seconds * 1e3},
          {"optimizer_ms", measured.optimizer_seconds * 1e3},
          {"parameters", measured.parameters},
          {"in_flight", in_flight},
          {"matrix_products", fp8 ? "fp8" : "bf16"},
          {"peak_memory_bytes", measured.peak_memory_bytes}};
}

constexpr size_t kReducerThreads = 8;  // as a miner's

// The step again while a merge of such uploads is reduced at the same time, on the CPU and, where there is one, on the step's
// GPU: what of a reduction the training pays for.
StatusOr<nlohmann::json> steps_beside_merge(const model::StepCase& step_case, const std::string& device,
                                            const StepBenchOptions& options) {
  core::MergeSpec merge;
  merge.trim_share = options.trim_share;
  std::unique_ptr<kernels::MergeReducer> gpu;
  if (device != "cpu") {
    const size_t colon = device.find(':');
    TESSERA_ASSIGN_OR_RETURN(gpu, kernels::make_cuda_merge_reducer(colon == std::string::npos ? 0 : std::stoi(device.substr(colon + 1))));
  }
  nlohmann::json result = {{"uploads", options.beside_merge}, {"trim_share", options.trim_share}};
  const auto measure = [&](kernels::MergeReducer* reducer, const char* where) -> Status {
    ReducerLoad load(reducer, merge, options.beside_merge, kReducerThreads);
    model::MeasureOptions measuring = options.over.measure;
    measuring.warmed_up = [&load] { load.restart(); };
    TESSERA_ASSIGN_OR_RETURN(const model::StepMeasurement measured, model::measure_step(step_case, device, measuring));
    TESSERA_ASSIGN_OR_RETURN(const double rate, load.finish());
    result[where] = {{"step_ms", measured.seconds * 1e3}, {"reduced_gb_per_s", rate}};
    std::printf("%-18s beside a reduction of %.2f GB/s on the %s: step %.2f ms\n", step_case.name.c_str(), rate, where,
                measured.seconds * 1e3);
    return ok_status();
  };
  TESSERA_RETURN_IF_ERROR(measure(nullptr, "cpu"));
  if (gpu != nullptr) TESSERA_RETURN_IF_ERROR(measure(gpu.get(), "gpu"));
  return result;
}

Status run_step_bench(const StepBenchOptions& options) {
  const std::string header = fmt::format("{:<18} {:>12} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "slice",
                                         "tokens/s", "MFU", "roofline", "sustained", "step ms", "forward", "backward", "optimizer",
                                         "launch ms", "peak GiB");
  const model::MeasureOptions& measure = options.over.measure;
  return run_over_slices(options.over, header, [&](const Slice& slice, const BenchDevice& device, nlohmann::json* rows) -> Status {
    TESSERA_ASSIGN_OR_RETURN(const model::StepCase step_case, case_of(slice, options));
    TESSERA_ASSIGN_OR_RETURN(const model::StepMeasurement measured, model::measure_step(step_case, device.name, measure));
    // After the step, which would find a warm device otherwise.
    TESSERA_ASSIGN_OR_RETURN(const double sustained,
                             model::measure_sustained_product(device.name, measure, measured.seconds));
    nlohmann::json row = row_of(slice.name, device, measured, sustained, measure.in_flight, options.fp8);
    const double mfu = row["mfu"].is_null() ? 0 : row["mfu"].get<double>();
    std::printf("%-18s %12.0f %7.1f%% %8.1f%% %8.1f%% %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", slice.name,
                row["tokens_per_s"].get<double>(), mfu * 100, row["roofline"].get<double>() * 100,
                row["sustained_roofline"].get<double>() * 100,
                measured.seconds * 1e3, measured.forward_seconds * 1e3, measured.backward_seconds * 1e3,
                measured.optimizer_seconds * 1e3, measured.launch_seconds * 1e3,
                static_cast<double>(measured.peak_memory_bytes) / (1 << 30));
    if (options.beside_merge > 0) {
      TESSERA_ASSIGN_OR_RETURN(row["beside_merge"], steps_beside_merge(step_case, device.name, options));
    }
    rows->push_back(row);
    return ok_status();
  });
}

}  // namespace

void add_step_bench(CLI::App* app) {
  auto options = std::make_shared<StepBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "step",
      "Tokens a second of one stage: forward, backward and an optimizer step, beside the rate of a "
      "large matrix product measured in the same run: from rest (roofline) and for as long as the steps (sustained)");
  add_slice_options(command, &options->over);
  command->add_option("--batch", options->batch, "Sequences of a microbatch; 0: the slice's own");
  command->add_option("--boundary", options->boundary, "Around slices")
      ->check(CLI::IsMember({"none", "anchored"}))
      ->capture_default_str();
  add_recompute_option(command, &options->recompute);
  command->add_option("--pass", options->pass, "best, fused (by hand) or autograd")
      ->check(CLI::IsMember({"best", "fused", "autograd"}))
      ->capture_default_str();
  command->add_option("--in-flight", options->over.measure.in_flight,
                      "Microbatches between forward and backward at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_flag("--deterministic", options->deterministic, "As training.deterministic");
  command->add_flag("--fp8", options->fp8, "training.matrix_products: fp8");
  command
      ->add_option("--beside-merge", options->beside_merge,
                   "Then again while a merge of so many uploads is reduced, on the CPU and on the GPU")
      ->check(CLI::Range(2, 64));
  command
      ->add_option("--trim-share", options->trim_share, "Of that merge, as merge.trim_share")
      ->check(CLI::Range(0.0, 0.49))
      ->needs("--beside-merge");
  on_call(command, [options] { return run_step_bench(*options); });
}

}  // namespace tessera::apps
