// The configuration of a run: YAML to a checked RunConfig, and back.
//
// A key that is unknown, given twice, of the wrong type or of an impossible value is an
// INVALID_ARGUMENT error that names the place, the key and what would work:
//   quickstart.yaml:12: training.stpes: unknown key; did you mean 'steps'?
//   quickstart.yaml:4: model.width: expected a whole number, got 'wide'
//   --set training.steps=0: training.steps: 0 is not allowed; it must be 1 to 100000000
//   quickstart.yaml: pipeline.stages (default 3): 3 stages can't share model.layers 2; ...
// All functions are thread-safe.
#pragma once

#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"

namespace tessera::config {

// Where the training data comes from. Relative paths are relative to the folder the program was
// started in.
struct DataConfig {
  // Dataset folder (manifest.json and token shards). Empty: a folder the program chooses in its own
  // directory.
  std::string path;
  // Text files, folders, .gz or .jsonl files that the dataset is built from, if `path` holds none
  // yet.
  std::vector<std::string> text;
  // Tokenizer model for building. Empty: bytes are the tokens, and model.vocab must be at least
  // 256.
  std::string sentencepiece_model;
  double validation_share = 0.05;    // of the tokens, 0 to 0.5: kept out of training
  std::string jsonl_field = "text";  // of each line of a .jsonl file
  bool operator==(const DataConfig&) const = default;
};

struct RunConfig {
  core::RunSpec spec;  // validated: stage_layers and boundary.rank are filled in
  DataConfig data;
};

// Reads `path` (empty: no file, every key at its default), then applies `overrides`, each
// "section.key=value" with the value in YAML; of two for the same key the later wins. An absent key
// has its default. NOT_FOUND if there is no such file.
StatusOr<RunConfig> load_run_config(const std::string& path,
                                    const std::vector<std::string>& overrides);

// The complete effective configuration. load_run_config() of it gives the same RunConfig.
std::string to_yaml(const RunConfig& config);

// Markdown tables of every key: type, default, allowed values, meaning.
std::string run_config_reference_markdown();

}  // namespace tessera::config
