// The whole pipeline in one process, without gradients: evaluation and sampling from checkpoint
// tensors. It computes what the stages of a run compute, boundaries and the rounding of the wire
// included.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"

namespace tessera::model {

// Used by one thread. No exception leaves it.
class WholeModel {
 public:
  // `stages[s]`: stage s's flat vector in the order of stage_layout(). `device`: as choose_device()
  // answers.
  static StatusOr<std::unique_ptr<WholeModel>> create(const core::RunSpec& spec,
                                                      const std::vector<std::vector<float>>& stages,
                                                      const std::string& device, int threads = 0);
  ~WholeModel();
  WholeModel(const WholeModel&) = delete;
  WholeModel& operator=(const WholeModel&) = delete;

  // Mean cross-entropy per token in nats of B windows of T + 1 tokens, T = model.context, B =
  // tokens.size() / (T + 1).
  StatusOr<double> loss(const std::vector<uint32_t>& tokens);

  // [ids.size(), vocab] logits, row i for the token after ids[i]. 1 to T ids.
  StatusOr<std::vector<float>> logits(const std::vector<uint32_t>& ids);
  // The last row of logits().
  StatusOr<std::vector<float>> last_logits(const std::vector<uint32_t>& ids);

 private:
  struct Implementation;
  explicit WholeModel(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace tessera::model
