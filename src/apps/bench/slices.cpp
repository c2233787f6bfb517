#include "apps/bench/slices.h"

#include <algorithm>
#include <cstdio>

#include "apps/bench/bench.h"

namespace tessera::apps {
namespace {

constexpr Slice kSlices[] = {
    {"llama1b-L4-d2048", 4, 2048, 32, 8, 8192, 16, 1024, 0, false},
    {"1.5b-L8-d2048", 8, 2048, 16, 16, 5632, 16, 1024, 0, false},
    {"8b-L2-d4096", 2, 4096, 32, 8, 14336, 8, 2048, 0, false},
    {"small-L6-d768", 6, 768, 12, 12, 2048, 32, 1024, 0, false},
    {"whole-124m", 12, 768, 12, 12, 2048, 32, 1024, 50304, false},
    {"whole-1.5b", 27, 2048, 16, 16, 5632, 32, 1024, 50304, false},
    {"tiny-L4-d256", 4, 256, 4, 4, 704, 8, 128, 0, true},
    {"small-L2-d512", 2, 512, 8, 8, 1408, 4, 256, 0, true},
    {"tiny-whole", 4, 256, 4, 4, 704, 8, 128, 256, true},
};

const std::map<std::string, core::Recompute> kRecomputeNames = {
    {"off", core::Recompute::kOff}, {"block", core::Recompute::kBlock}, {"full", core::Recompute::kFull}};
const std::map<std::string, core::OptimizerKind> kOptimizerNames = {{"adamw", core::OptimizerKind::kAdamW},
                                                                    {"nadam", core::OptimizerKind::kNAdam},
                                                                    {"muon", core::OptimizerKind::kMuon}};

template <typename Enum>
std::string name_in(const std::map<std::string, Enum>& names, Enum value) {
  for (const auto& [name, named] : names) {
    if (named == value) return name;
  }
  return "?";
}

template <typename Enum>
void add_enum_option(CLI::App* command, const std::string& name, const std::map<std::string, Enum>& names, Enum* value,
                     const std::string& description) {
  command
      ->add_option_function<std::string>(name, [&names, value](const std::string& given) { *value = names.at(given); },
                                         description)
      ->check(CLI::IsMember(names))
      ->default_str(name_in(names, *value));
}

std::vector<Slice> chosen_slices(const SliceBenchOptions& options, const std::string& device) {
  std::vector<Slice> chosen;
  for (const Slice& slice : kSlices) {
    const bool named = std::find(options.slices.begin(), options.slices.end(), slice.name) != options.slices.end();
    const bool fits = slice.on_cpu == (device == "cpu") && (options.with_whole || !slice.is_whole());
    if (options.slices.empty() ? fits : named) chosen.push_back(slice);
  }
  return chosen;
}

}  // namespace

std::span<const Slice> all_slices() { return kSlices; }

std::string names_of_slices() {
  std::string names;
  for (const Slice& slice : kSlices) names += std::string(" ") + slice.name;
  return names;
}

void add_slice_options(CLI::App* command, SliceBenchOptions* options) {
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--slice", options->slices, "Only these; several may be given:" + names_of_slices());
  command
      ->add_option("--steps", options->measure.steps,
                   "Of a timed block; the best of " + std::to_string(options->measure.blocks) + " counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the table there");
}

Status run_over_slices(const SliceBenchOptions& options, const std::string& header,
                       const std::function<Status(const Slice&, const BenchDevice&, nlohmann::json* rows)>& measure) {
  BenchDevice device;
  TESSERA_ASSIGN_OR_RETURN(device.name, model::choose_device(options.device));
  const std::vector<Slice> slices = chosen_slices(options, device.name);
  if (slices.empty()) return invalid_argument("no slice of that name; they are{}", names_of_slices());
  TESSERA_ASSIGN_OR_RETURN(device.ceilings, model::measure_ceilings(device.name));
  std::printf("%s: matrix product %.3g TFLOP/s, copy %.3g GB/s\n%s\n", device.name.c_str(),
              device.ceilings.operations_per_second / 1e12, device.ceilings.bytes_per_second / 1e9, header.c_str());
  nlohmann::json rows = nlohmann::json::array();
  for (const Slice& slice : slices) {
    TESSERA_RETURN_IF_ERROR(measure(slice, device, &rows));
    std::fflush(stdout);
  }
  return write_report(options.json, rows);
}

void add_recompute_option(CLI::App* command, core::Recompute* recompute) {
  add_enum_option(command, "--recompute", kRecomputeNames, recompute, "As training.recompute");
}
void add_optimizer_option(CLI::App* command, core::OptimizerKind* kind) {
  add_enum_option(command, "--optimizer", kOptimizerNames, kind, "As training.optimizer");
}

const std::map<std::string, core::OptimizerKind>& optimizer_names() { return kOptimizerNames; }
std::string name_of_recompute(core::Recompute recompute) { return name_in(kRecomputeNames, recompute); }
std::string name_of_optimizer(core::OptimizerKind kind) { return name_in(kOptimizerNames, kind); }

core::RunSpec spec_of(const Slice& slice) {
  core::RunSpec spec;
  spec.pipeline.stages = slice.is_whole() ? 1 : 3;
  spec.model.layers = slice.layers * spec.pipeline.stages;
  spec.model.width = slice.width;
  spec.model.heads = slice.heads;
  spec.model.kv_heads = slice.kv_heads;
  spec.model.ffn_width = slice.ffn_width;
  spec.model.context = slice.context;
  spec.model.vocab = slice.is_whole() ? slice.vocab : 50304;
  spec.training.microbatch_size = slice.batch;
  spec.boundary.kind = core::BoundaryKind::kNone;
  spec.boundary.codec = Codec::kBf16;
  return spec;
}

}  // namespace tessera::apps
