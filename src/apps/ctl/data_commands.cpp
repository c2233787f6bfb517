// config, data, checkpoint export, eval, generate.
#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "program_paths.h"
#include "tessera/base/files.h"
#include "tessera/config/daemon_config.h"
#include "tessera/config/run_config.h"
#include "tessera/config/scenario.h"
#include "tessera/data/dataset.h"
#include "tessera/store/checkpoint.h"
#include "tessera/store/hf_export.h"

namespace tessera::apps {
namespace {

constexpr const char* kProgram = "tesseractl";

nlohmann::json describe(const std::vector<core::TokenShard>& shards) {
  uint64_t tokens = 0;
  for (const core::TokenShard& shard : shards) tokens += shard.tokens;
  return {{"shards", shards.size()}, {"tokens", tokens}};
}

struct ConfigCheckFlags {
  std::string file;
  std::string kind = "auto";
  std::vector<std::string> overrides;
  bool show = false;
  bool json = false;
};

// A daemon's YAML has a top-level key that no other has.
std::string kind_of(const std::string& file) {
  const StatusOr<std::string> text = read_file(file, 1 << 20);
  if (!text.ok()) return "run";  // loading it says what is wrong
  const std::string lines = "\n" + *text;
  if (lines.find("\nrun_config:") != std::string::npos) return "orchestrator";
  if (lines.find("\nsim:") != std::string::npos) return "scenario";
  return lines.find("\norchestrator:") != std::string::npos ? "miner" : "run";
}

int check_config(const ConfigCheckFlags& flags) {
  Status status = ok_status();
  std::string effective;
  const std::string kind = flags.kind == "auto" ? kind_of(flags.file) : flags.kind;
  if (kind == "run") {
    const auto config = config::load_run_config(flags.file, flags.overrides);
    status = config.status();
    if (config.ok()) effective = config::to_yaml(*config);
  } else if (kind == "scenario") {
    status = config::load_scenario(flags.file, flags.overrides).status();
  } else if (kind == "orchestrator") {
    status = config::load_orchestrator_config(flags.file, flags.overrides).status();
  } else {
    status = config::load_miner_config(flags.file, flags.overrides).status();
  }
  if (flags.json) {
    fmt::print("{}\n", nlohmann::json{{"ok", status.ok()}, {"error", message_of(status)}}.dump());
    return status.ok() ? kExitOk : kExitFailure;
  }
  if (!status.ok()) return fail(kProgram, status);
  fmt::print("{}", flags.show ? effective : fmt::format("{}: good\n", flags.file));
  return kExitOk;
}

int report_dataset(const StatusOr<data::DatasetManifest>& dataset, const std::string& folder, bool json) {
  if (!dataset.ok()) return fail(kProgram, dataset.status());
  const nlohmann::json report = {{"folder", folder},
                                 {"tokenizer", dataset->tokenizer},
                                 {"vocab", dataset->vocab},
                                 {"train", describe(dataset->train)},
                                 {"validation", describe(dataset->validation)}};
  fmt::print("{}\n", json ? report.dump() : report.dump(2));
  return kExitOk;
}

struct DataBuildFlags {
  data::BuildOptions options;
  bool json = false;
};

int build_data(DataBuildFlags& flags) {
  const bool live = ::isatty(STDERR_FILENO) != 0;
  if (live) {
    flags.options.progress = [](uint64_t done, uint64_t total) {
      fmt::print(stderr, "\rreading: {:.1f} of {:.1f} MB", static_cast<double>(done) / 1e6, static_cast<double>(total) / 1e6);
    };
  }
  const auto dataset = data::build_dataset(flags.options);
  if (live) fmt::print(stderr, "\n");
  return report_dataset(dataset, flags.options.out, flags.json);
}

struct DataImportFlags {
  std::vector<std::string> train;
  std::vector<std::string> validation;
  uint32_t vocab = 0;
  std::string out;
  bool json = false;
};

int import_data(const DataImportFlags& flags) {
  const auto dataset = data::import_bin_shards(flags.train, flags.validation, flags.vocab, flags.out);
  return report_dataset(dataset, flags.out, flags.json);
}

struct ExportFlags {
  std::string format = "hf";
  std::string checkpoint;
  std::string out;
  bool force = false;
  bool json = false;
};

int export_checkpoint(const ExportFlags& flags) {
  const auto checkpoint = store::read_checkpoint_weights(flags.checkpoint);
  if (!checkpoint.ok()) return fail(kProgram, checkpoint.status());
  const Status status = store::export_hugging_face(*checkpoint, flags.out, flags.force);
  if (!status.ok()) return fail(kProgram, status);
  if (flags.json) {
    fmt::print("{}\n", nlohmann::json{{"out", flags.out}, {"format", "hf"}}.dump());
  } else {
    fmt::print("{}: a model that transformers.AutoModelForCausalLM.from_pretrained loads\n", flags.out);
  }
  return kExitOk;
}

// What needs a model runs in a program that links LibTorch; its flags are the same.
int run_other_program(const std::string& name, const std::string& command, const std::vector<std::string>& arguments) {
  const auto program = sibling_program(name);
  if (!program.ok()) return fail(kProgram, program.status());
  std::vector<std::string> words{*program, command};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execv(words[0].c_str(), pointers.data());
  return fail(kProgram, internal_error("{} can't be started", words[0]));
}

void add_other_program(CLI::App& app, Action& action, const std::string& program, const std::string& name,
                       const std::string& about) {
  CLI::App* command = app.add_subcommand(name, about);
  command->prefix_command();  // everything behind it is the other program's
  command->set_help_flag();
  command->callback(
      [&action, command, program, name] { action = [=] { return run_other_program(program, name, command->remaining()); }; });
}

}  // namespace

void add_config_commands(CLI::App& app, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Configuration files");
  config->require_subcommand(1);
  CLI::App* check = config->add_subcommand("check", "Checks a YAML; exit code 1 and file:line if it is wrong");
  const auto flags = std::make_shared<ConfigCheckFlags>();
  check->add_option("file", flags->file, "The YAML")->required();
  check->add_option("--kind", flags->kind, "run, orchestrator, miner or scenario; auto: by the file's keys")
      ->check(CLI::IsMember({"auto", "run", "orchestrator", "miner", "scenario"}));
  check->add_option("--set", flags->overrides, "key=value over the file")->allow_extra_args(false);
  check->add_flag("--show", flags->show, "Print the complete effective configuration (kind run)");
  check->add_flag("--json", flags->json, "Answer as JSON");
  check->callback([&action, flags] { action = [flags] { return check_config(*flags); }; });

  CLI::App* reference = config->add_subcommand("reference", "All keys with defaults, as Markdown");
  const auto kind = std::make_shared<std::string>("run");
  reference->add_option("kind", *kind, "run, orchestrator, miner, validator or scenario")
      ->check(CLI::IsMember({"run", "orchestrator", "miner", "validator", "scenario"}));
  reference->callback([&action, kind] {
    action = [kind] {
      fmt::print("{}", *kind == "run" ? config::run_config_reference_markdown()
                       : *kind == "scenario" ? config::scenario_reference_markdown()
                       : *kind == "validator" ? config::validator_config_reference_markdown()
                       : *kind == "miner" ? config::miner_config_reference_markdown()
                                          : config::orchestrator_config_reference_markdown());
      return kExitOk;
    };
  });
}

void add_data_commands(CLI::App& app, Action& action) {
  CLI::App* data = app.add_subcommand("data", "Training data");
  data->require_subcommand(1);
  CLI::App* build = data->add_subcommand("build", "Makes token shards from text");
  const auto flags = std::make_shared<DataBuildFlags>();
  data::BuildOptions& options = flags->options;
  build->add_option("inputs", options.inputs, "Text files, folders, .gz, .jsonl")->required();
  build->add_option("--out", options.out, "The dataset's folder")->required();
  build->add_option("--sentencepiece", options.sentencepiece_model, "SentencePiece model (else: bytes)");
  build->add_option("--field", options.jsonl_field, "Text field of .jsonl lines")->capture_default_str();
  build->add_option("--validation-share", options.validation_share, "Kept out of training")->capture_default_str();
  build->add_option("--shard-tokens", options.shard_tokens, "Tokens of a shard file")->capture_default_str();
  build->add_flag("--force", options.force, "Replace a folder that holds something else");
  build->add_flag("--json", flags->json, "Answer as JSON");
  build->callback([&action, flags] { action = [flags] { return build_data(*flags); }; });

  CLI::App* import = data->add_subcommand("import", "Uses llm.c or nanoGPT .bin shards as they are");
  const auto import_flags = std::make_shared<DataImportFlags>();
  import->add_option("--train", import_flags->train, "Training shards")->required();
  import->add_option("--validation", import_flags->validation, "Validation shards")->required();
  import->add_option("--vocab", import_flags->vocab, "Vocabulary of their tokenizer, e.g. 50257")->required();
  import->add_option("--out", import_flags->out, "The dataset's folder")->required();
  import->add_flag("--json", import_flags->json, "Answer as JSON");
  import->callback([&action, import_flags] { action = [import_flags] { return import_data(*import_flags); }; });
}

void add_checkpoint_commands(CLI::App& app, Action& action) {
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "Checkpoints");
  checkpoint->require_subcommand(1);
  CLI::App* exporter = checkpoint->add_subcommand("export", "Writes a whole model for other programs");
  const auto flags = std::make_shared<ExportFlags>();
  exporter->add_option("--format", flags->format, "hf: Hugging Face Llama")->check(CLI::IsMember({"hf"}));
  exporter->add_option("--checkpoint", flags->checkpoint, "The checkpoint's folder")->required();
  exporter->add_option("--out", flags->out, "Folder to write")->required();
  exporter->add_flag("--force", flags->force, "Replace files in it");
  exporter->add_flag("--json", flags->json, "Answer as JSON");
  exporter->callback([&action, flags] { action = [flags] { return export_checkpoint(*flags); }; });
  add_other_program(app, action, "tessera-model", "eval", "Loss of a checkpoint on a text (--help for its flags)");
  add_other_program(app, action, "tessera-model", "generate", "Samples text from a checkpoint (--help for its flags)");
  CLI::App* validator = app.add_subcommand("validator", "Validators");
  validator->require_subcommand(1);
  add_other_program(*validator, action, "tessera-validator", "calibrate",
                    "Measures how far honest engines are apart here, and proposes audit thresholds (--help for its flags)");
}

}  // namespace tessera::apps
