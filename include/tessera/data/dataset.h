// A dataset folder: manifest.json, shard files, and tokenizer.model for SentencePiece.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"

namespace tessera::data {

struct DatasetManifest {
  std::string folder;
  std::string tokenizer;  // "bytes", "sentencepiece", or "external" (imported ids)
  uint32_t vocab = 0;
  uint32_t token_bytes = 2;
  std::vector<core::TokenShard> train;
  std::vector<core::TokenShard> validation;
  core::DataPlan plan() const;  // of the training split
};

struct BuildOptions {
  std::vector<std::string> inputs;   // text files, folders (walked, sorted), .gz, .jsonl (.jsonl.gz)
  std::string out;
  std::string sentencepiece_model;   // empty: bytes
  std::string jsonl_field = "text";
  double validation_share = 0.05;    // of each document's ... see docs/formats/dataset.md
  uint64_t shard_tokens = 64u << 20;
  bool force = false;                // replace a folder that holds something else
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress;  // may be empty
};

// Builds into a temporary folder and renames. The same inputs and options already built: returns at once (idempotent).
StatusOr<DatasetManifest> build_dataset(const BuildOptions& options);
// Reads manifest.json and checks every shard's size; `verify_hashes` also its digest. The error names the file.
StatusOr<DatasetManifest> load_dataset(const std::string& folder, bool verify_hashes);
// llm.c or nanoGPT .bin shards as a dataset, without copying (symbolic links into `out`).
StatusOr<DatasetManifest> import_bin_shards(const std::vector<std::string>& train,
                                            const std::vector<std::string>& validation, uint32_t vocab,
                                            const std::string& out);

}  // namespace tessera::data
