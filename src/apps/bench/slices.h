// The slices that tessera-bench measures a stage on: those of scripts/opponents/torch_slice.py, whole small models, and
// small ones for a CPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"

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

// Those with a name in `names`; with none given, those for `device`, whole models only if `with_whole`.
std::vector<Slice> chosen_slices(const std::vector<std::string>& names, const std::string& device, bool with_whole);

// A run whose stage `slice.stage()` is the slice; boundary kind none. Not validated: the caller changes it first.
core::RunSpec spec_of(const Slice& slice);

}  // namespace tessera::apps
