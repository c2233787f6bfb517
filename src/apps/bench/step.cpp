// tessera-bench step: forward + backward + optimizer of a stage.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "apps/bench/bench.h"
#include "tessera/model/measure.h"

namespace tessera::apps {
namespace {

struct Dimensions {
  const char* name;
  uint32_t layers, width, heads, kv_heads, ffn_width, batch, context;
  uint32_t vocab;  // 0: a slice from the middle of a model; else a whole model with head and loss
  bool on_cpu;
};

// The slices are those of scripts/opponents/torch_slice.py.
constexpr Dimensions kCases[] = {
    {"llama1b-L4-d2048", 4, 2048, 32, 8, 8192, 16, 1024, 0, false},
    {"1.5b-L8-d2048", 8, 2048, 16, 16, 5632, 16, 1024, 0, false},
    {"8b-L2-d4096", 2, 4096, 32, 8, 14336, 8, 2048, 0, false},
    {"small-L6-d768", 6, 768, 12, 12, 2048, 32, 1024, 0, false},
    {"whole-124m", 12, 768, 12, 12, 2048, 32, 1024, 50304, false},
    {"whole-1.5b", 27, 2048, 16, 16, 5632, 32, 1024, 50304, false},
    {"tiny-L4-d256", 4, 256, 4, 4, 704, 8, 128, 0, true},
    {"tiny-whole", 4, 256, 4, 4, 704, 8, 128, 256, true},
};

struct StepBenchOptions {
  std::string device = "auto", json, recompute = "off", boundary = "none", pass = "best";
  std::vector<std::string> slices;
  bool deterministic = false;
  uint32_t batch = 0;
  model::MeasureOptions measure;
};

StatusOr<model::StepCase> case_of(const Dimensions& dimensions, const StepBenchOptions& options) {
  const bool whole = dimensions.vocab > 0;
  model::StepCase step_case;
  step_case.name = dimensions.name;
  core::RunSpec& spec = step_case.spec;
  spec.pipeline.stages = whole ? 1 : 3;
  step_case.stage = whole ? 0 : 1;
  spec.model.layers = dimensions.layers * spec.pipeline.stages;
  spec.model.width = dimensions.width;
  spec.model.heads = dimensions.heads;
  spec.model.kv_heads = dimensions.kv_heads;
  spec.model.ffn_width = dimensions.ffn_width;
  spec.model.context = dimensions.context;
  spec.model.vocab = whole ? dimensions.vocab : 50304;
  spec.training.microbatch_size = options.batch > 0 ? options.batch : dimensions.batch;
  spec.training.deterministic = options.deterministic;
  spec.training.recompute = options.recompute == "block"  ? core::Recompute::kBlock
                            : options.recompute == "full" ? core::Recompute::kFull
                                                          : core::Recompute::kOff;
  if (options.boundary == "none") {
    spec.boundary.kind = core::BoundaryKind::kNone;
    spec.boundary.codec = Codec::kBf16;
  }
  step_case.pass = options.pass == "autograd" ? model::PassKind::kAutograd
                   : options.pass == "fused"  ? model::PassKind::kFused
                                              : model::PassKind::kBest;
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  return step_case;
}

// The FLOP/s of an H100's or H200's datasheet in dense bf16, which MFU is stated against.
constexpr double kHopperPeak = 989e12;

nlohmann::json row_of(const std::string& name, const std::string& device,
                      const model::StepMeasurement& measured, const model::Ceilings& ceilings) {
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
          {"optimizer_ms", measured.optimizer_seconds * 1e3},
          {"parameters", measured.parameters},
          {"peak_memory_bytes", measured.peak_memory_bytes}};
}

Status run_step_bench(const StepBenchOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(options.device));
  TESSERA_ASSIGN_OR_RETURN(const model::Ceilings ceilings, model::measure_ceilings(device));
  std::printf("%s: matrix product %.0f TFLOP/s, copy %.0f GB/s\n", device.c_str(),
              ceilings.operations_per_second / 1e12, ceilings.bytes_per_second / 1e9);
  std::printf("%-18s %12s %8s %9s %9s %9s %9s %9s %9s\n", "slice", "tokens/s", "MFU", "roofline",
              "step ms", "forward", "backward", "optimizer", "peak GiB");
  nlohmann::json rows = nlohmann::json::array();
  for (const Dimensions& dimensions : kCases) {
    const bool named = std::find(options.slices.begin(), options.slices.end(), dimensions.name) !=
                       options.slices.end();
    if (options.slices.empty() ? dimensions.on_cpu != (device == "cpu") : !named) continue;
    TESSERA_ASSIGN_OR_RETURN(const model::StepCase step_case, case_of(dimensions, options));
    TESSERA_ASSIGN_OR_RETURN(const model::StepMeasurement measured,
                             model::measure_step(step_case, device, options.measure));
    const nlohmann::json row = row_of(dimensions.name, device, measured, ceilings);
    const double mfu = row["mfu"].is_null() ? 0 : row["mfu"].get<double>();
    std::printf("%-18s %12.0f %7.1f%% %8.1f%% %9.2f %9.2f %9.2f %9.2f %9.2f\n", dimensions.name,
                row["tokens_per_s"].get<double>(), mfu * 100,
                row["roofline"].get<double>() * 100, measured.seconds * 1e3,
                measured.forward_seconds * 1e3, measured.backward_seconds * 1e3,
                measured.optimizer_seconds * 1e3,
                static_cast<double>(measured.peak_memory_bytes) / (1 << 30));
    std::fflush(stdout);
    rows.push_back(row);
  }
  if (rows.empty()) return invalid_argument("no slice of that name; --help lists them");
  return write_report(options.json, rows);
}

std::string names_of_cases() {
  std::string names;
  for (const Dimensions& dimensions : kCases) names += std::string(" ") + dimensions.name;
  return names;
}

}  // namespace

void add_step_bench(CLI::App* app) {
  auto options = std::make_shared<StepBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "step",
      "Tokens a second of one stage: forward, backward and an optimizer step, beside the rate of a "
      "large matrix product measured in the same run. Slices:" + names_of_cases());
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
  command->add_flag("--deterministic", options->deterministic, "As training.deterministic");
  command->add_option("--steps", options->measure.steps, "Of a timed block; the best of 3 counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the table there");
  on_call(command, [options] { return run_step_bench(*options); });
}

}  // namespace tessera::apps
