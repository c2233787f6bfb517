#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/model/commands.h"
#include "apps/model/loaded_model.h"
#include "apps/model/sampler.h"

namespace tessera::apps {
namespace {

struct Continuation {
  std::vector<uint32_t> ids;  // behind the prompt's
  bool ended = false;         // at the end of a document, whose id is left out
};

StatusOr<Continuation> continue_from(LoadedModel& loaded, const std::vector<uint32_t>& prompt,
                                     const data::Tokenizer& tokenizer,
                                     const GenerateOptions& options) {
  Sampler sampler(tokenizer.vocab(), options.temperature, options.top_k, options.seed);
  const size_t context = loaded.spec.model.context;
  std::vector<uint32_t> all = prompt;
  Continuation continuation;
  while (continuation.ids.size() < options.tokens) {
    // Of a longer text the model sees the end.
    const size_t seen = std::min(all.size(), context);
    TESSERA_ASSIGN_OR_RETURN(
        const std::vector<float> logits,
        loaded.model->last_logits({all.end() - static_cast<int64_t>(seen), all.end()}));
    TESSERA_ASSIGN_OR_RETURN(const uint32_t id, sampler.pick(logits));
    continuation.ended = id == tokenizer.end_of_document() && !options.ignore_end;
    if (continuation.ended) break;
    all.push_back(id);
    continuation.ids.push_back(id);
  }
  return continuation;
}

// The text behind the prompt's. Decoded together: a SentencePiece text alone would lose its first
// space.
StatusOr<std::string> continuation_text(const data::Tokenizer& tokenizer,
                                        const std::vector<uint32_t>& prompt,
                                        const std::vector<uint32_t>& ids) {
  std::vector<uint32_t> all = prompt;
  all.insert(all.end(), ids.begin(), ids.end());
  TESSERA_ASSIGN_OR_RETURN(const std::string before, tokenizer.decode(prompt));
  TESSERA_ASSIGN_OR_RETURN(const std::string text, tokenizer.decode(all));
  if (text.starts_with(before)) return text.substr(before.size());
  return tokenizer.decode(ids);
}

}  // namespace

Status run_generate(const GenerateOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(LoadedModel loaded, load_model(options.model));
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<data::Tokenizer> tokenizer,
                           load_model_tokenizer(loaded, options.model));
  std::vector<uint32_t> prompt = tokenizer->encode(options.prompt);
  // What a document's beginning follows in the training data.
  if (prompt.empty()) prompt.push_back(tokenizer->end_of_document());
  TESSERA_ASSIGN_OR_RETURN(const Continuation continuation,
                           continue_from(loaded, prompt, *tokenizer, options));
  const std::vector<uint32_t> shown = options.prompt.empty() ? std::vector<uint32_t>() : prompt;
  TESSERA_ASSIGN_OR_RETURN(const std::string text,
                           continuation_text(*tokenizer, shown, continuation.ids));
  if (options.json) {
    const nlohmann::ordered_json json = {{"prompt", options.prompt},
                                         {"text", text},
                                         {"ids", continuation.ids},
                                         {"ended", continuation.ended}};
    // Bytes are tokens, so that a text may end within a letter.
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    const std::string line = options.prompt + text + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
  }
  return ok_status();
}

}  // namespace tessera::apps
