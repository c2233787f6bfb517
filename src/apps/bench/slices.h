// The slices that tessera-bench measures a stage on: those of scripts/opponents/torch_slice.py, whole small models, and
// small ones for a CPU.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/model/measure.h"

namespace tessera::apps {

struct Slice {
  const char* name;
  uint32_t layers, width, heads, kv_heads, ffn_width, batch, context;
  uint32_t vocab;  // 0: from the middle of a model; else a whole model with head and loss
  bool on_cpu;
  bool is_whole() const { return vocab > 0; }
  StageIndex stage() const { return is_whole() ? 0 : 1; }  // which of the run's stages it is
};

std::span<const Slice> all_slices();
std::string names_of_slices();

// What the benches that go over slices share: options, device, loop and report.
struct SliceBenchOptions {
  std::string device = "auto", json{};
  std::vector<std::string> slices{};  // none: those for the device
  bool with_whole = false;            // whole models among them
  model::MeasureOptions measure{};
};
struct BenchDevice {
  std::string name;
  model::Ceilings ceilings;
};
void add_slice_options(CLI::App* command, SliceBenchOptions* options);

// Calls `measure`, which prints a slice's rows and appends them, for each slice in turn, and writes the report.
// `header` is printed first, below the device's ceilings.
Status run_over_slices(const SliceBenchOptions& options, const std::string& header,
                       const std::function<Status(const Slice&, const BenchDevice&, nlohmann::json* rows)>& measure);

// Options with the names and values of training.recompute and training.optimizer.
void add_recompute_option(CLI::App* command, core::Recompute* recompute);
void add_optimizer_option(CLI::App* command, core::OptimizerKind* kind);
const std::map<std::string, core::OptimizerKind>& optimizer_names();
std::string name_of_recompute(core::Recompute recompute);
std::string name_of_optimizer(core::OptimizerKind kind);

// A run whose stage `slice.stage()` is the slice; boundary kind none. Not validated: the caller changes it first.
core::RunSpec spec_of(const Slice& slice);

}  // namespace tessera::apps
