// Windows of T + 1 tokens to evaluate on: window w begins at token w * T of its text or shard, as
// in training (core/data_plan.h); what is left over at an end is dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/run_spec.h"
#include "tessera/data/tokenizer.h"

namespace tessera::apps {

// One thread.
class WindowSource {
 public:
  virtual ~WindowSource() = default;
  virtual uint64_t count() const = 0;  // at least 1
  // Appends the T + 1 tokens of window `window` < count().
  virtual Status append(uint64_t window, std::vector<uint32_t>* tokens) = 0;
};

StatusOr<std::unique_ptr<WindowSource>> open_text(const std::string& path,
                                                  const data::Tokenizer& tokenizer,
                                                  uint32_t context);
// `split`: "train" or "validation". `trained_on`: what the model was; tokens of another tokenizer
// are refused.
StatusOr<std::unique_ptr<WindowSource>> open_dataset(const std::string& folder,
                                                     const std::string& split,
                                                     const core::ModelSpec& model,
                                                     const core::DataPlan& trained_on);

}  // namespace tessera::apps
