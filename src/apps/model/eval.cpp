#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/model/commands.h"
#include "apps/model/loaded_model.h"
#include "apps/model/window_source.h"

namespace tessera::apps {
namespace {

// A line that is written over on a terminal; nothing elsewhere.
class Progress {
 public:
  explicit Progress(uint64_t total) : total_(total), shown_(::isatty(STDERR_FILENO) == 1) {}
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void show(uint64_t done, double loss) const {
    if (shown_) fmt::print(stderr, "\r{} of {} windows, loss {:.4f}", done, total_, loss);
  }

 private:
  const uint64_t total_;
  const bool shown_;
};

StatusOr<std::unique_ptr<WindowSource>> open_source(const LoadedModel& loaded,
                                                    const EvalOptions& options) {
  if (!options.dataset.empty()) {
    return open_dataset(options.dataset, options.split, loaded.spec.model, loaded.data);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<data::Tokenizer> tokenizer,
                           load_model_tokenizer(loaded, options.model));
  return open_text(options.text, *tokenizer, loaded.spec.model.context);
}

StatusOr<double> mean_loss(model::WholeModel& model, WindowSource& source, uint64_t windows,
                           uint32_t batch) {
  const Progress progress(windows);
  double sum = 0;
  for (uint64_t done = 0; done < windows;) {
    const uint64_t count = std::min<uint64_t>(batch, windows - done);
    std::vector<uint32_t> tokens;
    for (uint64_t i = 0; i < count; ++i) {
      TESSERA_RETURN_IF_ERROR(source.append(done + i, &tokens));
    }
    TESSERA_ASSIGN_OR_RETURN(const double loss, model.loss(tokens));
    if (!std::isfinite(loss)) {
      return data_loss(
          "the loss of windows {} to {} is not a number: the model has diverged; use an earlier "
          "checkpoint",
          done, done + count - 1);
    }
    sum += loss * static_cast<double>(count);
    done += count;
    progress.show(done, sum / static_cast<double>(done));
  }
  return sum / static_cast<double>(windows);
}

}  // namespace

Status run_eval(const EvalOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const LoadedModel loaded, load_model(options.model));
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<WindowSource> source,
                           open_source(loaded, options));
  const uint64_t context = loaded.spec.model.context;
  uint64_t windows = source->count();
  if (options.max_tokens > 0) windows = std::min(windows, options.max_tokens / context);
  if (windows == 0) {
    return invalid_argument("--max-tokens {}: less than one window of model.context {}",
                            options.max_tokens, context);
  }
  // The run's own batch: a payload on the wire has one exponent for all its rows.
  const uint32_t batch = options.batch > 0 ? options.batch : loaded.spec.training.microbatch_size;
  TESSERA_ASSIGN_OR_RETURN(const double loss, mean_loss(*loaded.model, *source, windows, batch));
  if (options.json) {
    fmt::print("{}\n",
               nlohmann::ordered_json{{"tokens", windows * context}, {"loss", loss}}.dump());
  } else {
    fmt::print(
        "loss {:.4f} nats per token (perplexity {:.2f}) over {} tokens in {} windows of {}\n", loss,
        std::exp(loss), windows * context, windows, context);
  }
  return ok_status();
}

}  // namespace tessera::apps
