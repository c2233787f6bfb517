// tessera-model: what needs a whole model in one process. tesseractl hands its eval and generate to
// this program.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>

#include "apps/model/commands.h"

namespace tessera::apps {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

void add_model_options(CLI::App* command, ModelOptions* options) {
  command
      ->add_option("--checkpoint", options->checkpoint,
                   "Checkpoint folder (its latest checkpoint), or one of its step-... folders")
      ->required();
  command
      ->add_option("--device", options->device, "auto (a GPU if there is one), cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Of the CPU; 0: as torch chooses")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void add_tokenizer_option(CLI::App* command, ModelOptions* options) {
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model or dataset folder; needed unless the model was trained "
                      "on bytes");
}

void add_eval(CLI::App* app, EvalOptions* options) {
  CLI::App* command = app->add_subcommand(
      "eval",
      "Mean cross-entropy per token, in nats, over consecutive windows of the model's "
      "context length. Boundaries round as on the wire.");
  add_model_options(command, &options->model);
  add_tokenizer_option(command, &options->model);
  CLI::Option_group* source = command->add_option_group("Source", "What to evaluate on");
  source->add_option("--text", options->text, "A text file");
  source->add_option("--data", options->dataset, "A dataset folder (tesseractl data build)");
  source->require_option(1);
  command->add_option("--split", options->split, "Of --data: validation or train")
      ->check(CLI::IsMember({"validation", "train"}))
      ->capture_default_str();
  command
      ->add_option("--max-tokens", options->max_tokens, "Evaluate on no more than these; 0: on all")
      ->capture_default_str();
  command
      ->add_option("--batch", options->batch,
                   "Windows at a time; 0: the run's training.microbatch_size")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print {\"tokens\": N, \"loss\": X}");
}

void add_generate(CLI::App* app, GenerateOptions* options) {
  CLI::App* command = app->add_subcommand(
      "generate", "Continue a text. The same seed gives the same text on the same device.");
  add_model_options(command, &options->model);
  add_tokenizer_option(command, &options->model);
  command
      ->add_option("--prompt", options->prompt,
                   "Text to continue; empty: the beginning of a document")
      ->required();
  command->add_option("--tokens", options->tokens, "At most so many new ones")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-k", options->top_k, "Only among the k likeliest tokens; 0: all")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the sampling")->capture_default_str();
  command->add_flag("--ignore-end", options->ignore_end, "Go on past the end of a document");
  command->add_flag("--json", options->json,
                    "Print {\"prompt\": ..., \"text\": what follows it, \"ids\": [its tokens], "
                    "\"ended\": whether the document ended}");
}

void add_logits(CLI::App* app, LogitsOptions* options) {
  CLI::App* command = app->add_subcommand(
      "logits",
      "Write the logits of given token ids: raw little-endian fp32, [ids, vocab], row i "
      "for the token after id i. For comparison with other programs.");
  add_model_options(command, &options->model);
  command->add_option("--ids", options->ids, "Token ids, at most the context length: 1,2,3")
      ->delimiter(',')
      ->required();
  command->add_option("--out", options->out, "File to write")->required();
}

int run(int argc, char** argv) {
  CLI::App app("Evaluates, samples and inspects a trained Tessera model.", "tessera-model");
  app.set_version_flag("--version", TESSERA_VERSION);
  app.require_subcommand(1);
  EvalOptions eval;
  GenerateOptions generate;
  LogitsOptions logits;
  add_eval(&app, &eval);
  add_generate(&app, &generate);
  add_logits(&app, &logits);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& stopped) {
    return app.exit(stopped) == 0 ? kExitOk : kExitUsage;  // 0: help or version
  }
  const Status status = app.got_subcommand("eval")       ? run_eval(eval)
                        : app.got_subcommand("generate") ? run_generate(generate)
                                                         : run_logits(logits);
  if (status.ok() && std::fflush(stdout) == 0) return kExitOk;
  fmt::print(stderr, "tessera-model: error: {}\n",
             status.ok() ? "can't write to standard output" : message_of(status));
  return kExitFailure;
}

}  // namespace
}  // namespace tessera::apps

int main(int argc, char** argv) { return tessera::apps::run(argc, argv); }
