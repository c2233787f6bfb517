// tessera-bench zero: a stage on the GPUs of a box, by stage of ZeRO.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/collective/groups.h"
#include "tessera/core/memory_plan.h"
#include "tessera/model/measure_zero.h"

namespace tessera::apps {
namespace {

constexpr double kGigabyte = 1e9;
constexpr std::chrono::milliseconds kPatience{120000};

struct ZeroBenchOptions {
  std::string device = "auto", json, slice = "8b-L2-d4096";
  core::Recompute recompute = core::Recompute::kOff;
  core::OptimizerKind optimizer = core::OptimizerKind::kAdamW;
  std::vector<uint32_t> stages{0, 1, 2, 3};
  uint32_t gpus = 2;
  bool share_gpu = false;
  model::MeasureOptions measure;
};

StatusOr<core::RunSpec> run_of(const ZeroBenchOptions& options, uint32_t gpus) {
  const std::span<const Slice> known = all_slices();
  const auto slice = std::find_if(known.begin(), known.end(), [&](const Slice& one) { return options.slice == one.name; });
  if (slice == known.end()) return invalid_argument("no slice is called {}; --help lists them", options.slice);
  core::RunSpec spec = spec_of(*slice);
  spec.training.microbatch_size *= gpus;
  spec.training.recompute = options.recompute;
  spec.training.optimizer = options.optimizer;
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  return spec;
}

StatusOr<model::BoxOptions> box_of(const ZeroBenchOptions& options, const std::string& device, uint32_t zero_stage) {
  model::BoxOptions box;
  for (uint32_t i = 0; i < options.gpus; ++i) {
    box.devices.push_back(device == "cpu" || options.share_gpu ? device : "cuda:" + std::to_string(i));
  }
  std::vector<std::unique_ptr<ports::CollectiveGroup>> groups;
  if (options.share_gpu) {
    groups = collective::make_shared_device_groups(device, options.gpus);
  } else {
    TESSERA_ASSIGN_OR_RETURN(groups, collective::make_groups(box.devices, kPatience));
  }
  for (auto& group : groups) box.groups.push_back(std::move(group));
  box.zero_stage = zero_stage;
  return box;
}

nlohmann::json memory_row(const model::WorkerMemory& memory) {
  return {{"weights", memory.weights},         {"gradients", memory.gradients}, {"optimizer", memory.optimizer},
          {"buckets", memory.buckets},         {"activations", memory.activations}, {"allocator", memory.allocator}};
}

// The formula's bytes of each part, for what this device holds: on a CPU compute weights are fp32.
nlohmann::json formula_row(const core::StateBytes& bytes, bool on_gpu) {
  return {{"weights", bytes.weights * (on_gpu ? 1 : 2)}, {"gradients", bytes.gradients}, {"optimizer", bytes.optimizer}};
}

StatusOr<nlohmann::json> measure_stage(const ZeroBenchOptions& options, const std::string& device, uint32_t zero_stage,
                                       double single_rate) {
  model::ZeroCase zero_case;
  TESSERA_ASSIGN_OR_RETURN(zero_case.spec, run_of(options, options.gpus));
  zero_case.stage = zero_case.spec.pipeline.stages == 1 ? 0 : 1;
  TESSERA_ASSIGN_OR_RETURN(zero_case.box, box_of(options, device, zero_stage));
  TESSERA_ASSIGN_OR_RETURN(const model::ZeroMeasurement measured, model::measure_zero(zero_case, options.measure));
  TESSERA_ASSIGN_OR_RETURN(const core::StateBytes formula,
                           core::plan_state_bytes(static_cast<double>(measured.parameters), options.gpus, zero_stage,
                                                  core::Accounting::kMixed));
  nlohmann::json workers = nlohmann::json::array();
  for (const model::WorkerMemory& memory : measured.workers) workers.push_back(memory_row(memory));
  const nlohmann::json planned = formula_row(formula, device != "cpu");
  const double rate = static_cast<double>(measured.tokens) / measured.seconds;
  const model::WorkerMemory& first = measured.workers.front();
  std::printf("%4u %4u %12.0f %8.2f %9.2f %9.2f  %6.2f (%5.2f) %6.2f (%5.2f) %6.2f (%5.2f) %8.2f %8.2f %8.2f\n", options.gpus,
              zero_stage, rate, rate / single_rate, measured.seconds * 1e3, measured.stalled_milliseconds,
              static_cast<double>(first.weights) / kGigabyte, planned["weights"].get<double>() / kGigabyte,
              static_cast<double>(first.gradients) / kGigabyte, planned["gradients"].get<double>() / kGigabyte,
              static_cast<double>(first.optimizer) / kGigabyte, planned["optimizer"].get<double>() / kGigabyte,
              static_cast<double>(first.buckets) / kGigabyte, static_cast<double>(first.activations) / kGigabyte,
              static_cast<double>(first.allocator) / kGigabyte);
  std::fflush(stdout);
  return nlohmann::json{{"slice", options.slice}, {"device", device}, {"gpus", options.gpus}, {"zero", zero_stage},
                        {"recompute", name_of_recompute(options.recompute)}, {"optimizer", name_of_optimizer(options.optimizer)},
                        {"parameters", measured.parameters}, {"tokens_per_s", rate}, {"speedup", rate / single_rate},
                        {"step_ms", measured.seconds * 1e3}, {"exposed_gather_ms", measured.stalled_milliseconds},
                        {"bytes_per_gpu", workers}, {"formula_bytes_per_gpu", planned}};
}

Status run_zero_bench(const ZeroBenchOptions& options) {
  collective::prepare_process();
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(options.device));
  if (device != "cpu" && !options.share_gpu) {
    TESSERA_RETURN_IF_ERROR(model::choose_device("cuda:" + std::to_string(options.gpus - 1)).status());
  }
  // One device, without any of the box's machinery: what a second GPU has to double.
  model::StepCase single;
  single.name = options.slice;
  single.pass = model::PassKind::kFused;
  TESSERA_ASSIGN_OR_RETURN(single.spec, run_of(options, 1));
  single.stage = single.spec.pipeline.stages == 1 ? 0 : 1;
  TESSERA_ASSIGN_OR_RETURN(const model::StepMeasurement alone, model::measure_step(single, device, options.measure));
  const double single_rate = static_cast<double>(alone.tokens) / alone.seconds;
  std::printf("%s, recompute %s, %s, on %s; bytes in GB: live tensors (formula)\n", options.slice.c_str(),
              name_of_recompute(options.recompute).c_str(), name_of_optimizer(options.optimizer).c_str(), device.c_str());
  std::printf("%4s %4s %12s %8s %9s %9s  %14s %14s %14s %8s %8s %8s\n", "gpus", "zero", "tokens/s", "speedup", "step ms",
              "stall ms", "weights", "gradients", "optimizer", "buckets", "activ.", "alloc.");
  std::printf("%4u %4s %12.0f %8.2f %9.2f\n", 1, "-", single_rate, 1.0, alone.seconds * 1e3);
  nlohmann::json rows = nlohmann::json::array();
  rows.push_back({{"slice", options.slice}, {"device", device}, {"gpus", 1}, {"tokens_per_s", single_rate},
                  {"step_ms", alone.seconds * 1e3}, {"parameters", alone.parameters}, {"optimizer", name_of_optimizer(options.optimizer)},
                  {"recompute", name_of_recompute(options.recompute)}, {"peak_memory_bytes", alone.peak_memory_bytes}});
  for (const uint32_t stage : options.stages) {
    TESSERA_ASSIGN_OR_RETURN(nlohmann::json row, measure_stage(options, device, stage, single_rate));
    rows.push_back(std::move(row));
    TESSERA_RETURN_IF_ERROR(write_report(options.json, rows));
  }
  return ok_status();
}

}  // namespace

void add_zero_bench(CLI::App* app) {
  auto options = std::make_shared<ZeroBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "zero", "A stage on several GPUs as one miner: tokens a second against one GPU with the same sequences for each, memory of "
              "each GPU by part beside the formula, and the time that computation waits for gathered weights. Slices:" + names_of_slices());
  command->add_option("--device", options->device, "auto, cpu (workers over gloo) or cuda")->capture_default_str();
  command->add_option("--gpus", options->gpus)->check(CLI::Range(1u, core::kMostGpusOfBox))->capture_default_str();
  command->add_flag("--share-gpu", options->share_gpu,
                    "All workers on the first GPU: says nothing about speed, but runs the code and shows each worker's tensors");
  command->add_option("--zero", options->stages, "Only these stages; several may be given")->check(CLI::Range(0, 3));
  command->add_option("--slice", options->slice)->capture_default_str();
  add_recompute_option(command, &options->recompute);
  add_optimizer_option(command, &options->optimizer);
  command->add_option("--warmup", options->measure.warmup_steps)->capture_default_str();
  command->add_option("--steps", options->measure.steps, "Of a timed block")->capture_default_str();
  command->add_option("--blocks", options->measure.blocks, "The best one counts")->capture_default_str();
  command->add_option("--json", options->json, "Write the rows there");
  on_call(command, [options] { return run_zero_bench(*options); });
}

}  // namespace tessera::apps
