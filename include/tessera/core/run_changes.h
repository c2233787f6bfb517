// What may change in a running run, and how.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

// Sets one key ("training.learning_rate") from its text and validates the whole. INVALID_ARGUMENT says what is wrong with
// the value; FAILED_PRECONDITION why the key can't change in a running run. `spec` stays as it was then.
Status set_key(RunSpec* spec, const std::string& key, const std::string& value);

// Layers of the stages from "0-5,6-11,12": ranges of layers, both ends included, one a stage. They must tile the layers.
StatusOr<std::vector<uint32_t>> parse_stage_layers(const RunSpec& spec, const std::string& text);

// Whether a process that follows `a` can follow `b` without building its stage anew.
bool same_layout(const RunSpec& a, const RunSpec& b);

// The YAML's sections in which two specifications differ.
std::string differing_sections(const RunSpec& a, const RunSpec& b);

}  // namespace tessera::core
