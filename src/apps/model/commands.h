// The subcommands of tessera-model: what they are given, and what they do. Results go to stdout,
// progress to stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

struct ModelOptions {
  std::string checkpoint;  // a checkpoint root or one of its step folders
  std::string device = "auto";
  int threads = 0;        // of the CPU; 0: torch's own choice
  std::string tokenizer;  // SentencePiece model, or a dataset folder; empty: bytes
};

struct EvalOptions {
  ModelOptions model;
  std::string text;     // a file, or
  std::string dataset;  // a folder
  std::string split = "validation";
  uint64_t max_tokens = 0;  // 0: all
  uint32_t batch = 0;       // windows at a time; 0: the run's microbatch_size
  bool json = false;
};
Status run_eval(const EvalOptions& options);

struct GenerateOptions {
  ModelOptions model;
  std::string prompt;
  uint32_t tokens = 128;
  double temperature = 0.8;  // 0: always the likeliest
  uint32_t top_k = 0;        // 0: all
  uint64_t seed = 1;
  bool ignore_end = false;
  bool json = false;
};
Status run_generate(const GenerateOptions& options);

struct LogitsOptions {
  ModelOptions model;
  std::vector<uint32_t> ids;
  std::string out;
};
Status run_logits(const LogitsOptions& options);

}  // namespace tessera::apps
