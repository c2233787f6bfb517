#include "apps/bench/slices.h"

#include <algorithm>

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

}  // namespace

std::span<const Slice> all_slices() { return kSlices; }

std::string names_of_slices() {
  std::string names;
  for (const Slice& slice : kSlices) names += std::string(" ") + slice.name;
  return names;
}

std::vector<Slice> chosen_slices(const std::vector<std::string>& names, const std::string& device, bool with_whole) {
  std::vector<Slice> chosen;
  for (const Slice& slice : kSlices) {
    const bool named = std::find(names.begin(), names.end(), slice.name) != names.end();
    const bool fits = slice.on_cpu == (device == "cpu") && (with_whole || !slice.is_whole());
    if (names.empty() ? fits : named) chosen.push_back(slice);
  }
  return chosen;
}

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
