// Compares what a miner said and sent with what a replay gives, figure by figure.
#pragma once

#include <nlohmann/json.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/audit_compare.h"
#include "tessera/core/audit_messages.h"
#include "tessera/node/replay.h"

namespace tessera::node {

struct AuditFault {
  core::AuditFinding finding = core::AuditFinding::kNone;
  std::string reason;
};

// Element by element; both have the same size.
std::vector<float> difference(const std::vector<float>& from, const std::vector<float>& to);

class AuditJudge {
 public:
  // `claimed` finds a payload by the name in a receipt.
  using FindPayload = std::function<StatusOr<core::BoundaryPayload>(const Digest&)>;
  AuditJudge(const core::RunSpec& spec, FindPayload claimed) : spec_(spec), claimed_(std::move(claimed)) {}

  // The first fault of this microbatch, if any. An error: a payload could not be had.
  StatusOr<std::optional<AuditFault>> microbatch(const core::Receipt& receipt, const ReplayedMicrobatch& replayed);
  // The change of the weights: from `start` to `expected` by the replay, to `claimed` by the miner. `allowance`: how far the
  // format of what was claimed may have moved it, relative to the change.
  std::optional<AuditFault> delta(core::AuditFinding finding, const char* what, const std::vector<float>& start,
                                  const std::vector<float>& expected, const std::vector<float>& claimed,
                                  double allowance = 0);

  uint32_t judged() const { return judged_; }
  nlohmann::json evidence() const;

 private:
  // The largest deviations so far, for the evidence of a pass and for calibration.
  struct Extremes {
    double relative_error = 0;
    double cosine = 1;
    double norm_deviation = 0;
    void add(const core::Deviation& deviation);
  };
  StatusOr<std::string> tensor(const Digest& name, const core::BoundaryPayload& expected, Extremes* extremes);
  std::vector<float> decoded(const core::BoundaryPayload& payload) const;

  const core::RunSpec& spec_;
  const FindPayload claimed_;
  uint32_t judged_ = 0;
  uint32_t same_bits_ = 0;   // tensors
  uint32_t compared_ = 0;    // tensors with other bits
  Extremes activations_, gradients_, deltas_;
  double loss_difference_ = 0;
};

}  // namespace tessera::node
