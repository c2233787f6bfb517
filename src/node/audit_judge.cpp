#include "audit_judge.h"

#include <algorithm>
#include <cmath>

#include "tessera/core/payload_name.h"
#include "tessera/core/stage_layout.h"
#include "tessera/kernels/codec.h"

namespace tessera::node {
namespace {

using core::AuditFinding;

}  // namespace

std::vector<float> difference(const std::vector<float>& from, const std::vector<float>& to) {
  std::vector<float> delta(from.size());
  for (size_t i = 0; i < delta.size(); ++i) delta[i] = to[i] - from[i];
  return delta;
}

void AuditJudge::Extremes::add(const core::Deviation& deviation) {
  relative_error = std::max(relative_error, deviation.relative_error);
  cosine = std::min(cosine, deviation.cosine);
  norm_deviation = std::max(norm_deviation, std::abs(deviation.norm_ratio - 1));
}

std::vector<float> AuditJudge::decoded(const core::BoundaryPayload& payload) const {
  kernels::DecodeParams params;
  params.rows = spec_.tokens_per_microbatch();
  params.width = core::boundary_width(spec_);
  params.codec = spec_.boundary.codec;
  params.exponent = payload.exponent;
  if (payload.bytes.size() != payload_bytes(params.codec, static_cast<size_t>(params.rows), static_cast<size_t>(params.width))) return {};
  std::vector<float> values(static_cast<size_t>(params.rows * params.width));
  params.payload = reinterpret_cast<const uint8_t*>(payload.bytes.data());
  params.output = values.data();
  kernels::decode_cpu(params);
  return values;
}

// Empty: as it should be.
StatusOr<std::string> AuditJudge::tensor(const Digest& name, const core::BoundaryPayload& expected, Extremes* extremes) {
  if (core::name_of(expected) == name) {
    ++same_bits_;
    return std::string();
  }
  ++compared_;
  if (name.is_zero() || expected.bytes.empty()) return std::string("the receipt has one where there is none, or none where there is one");
  if (spec_.audit.exact) return std::string("it has other bits, and audit.exact is set");
  TESSERA_ASSIGN_OR_RETURN(const core::BoundaryPayload claimed, claimed_(name));
  const std::vector<float> expected_values = decoded(expected), claimed_values = decoded(claimed);
  const double allowance = core::rounding_allowance(expected_values, static_cast<uint64_t>(core::boundary_width(spec_)),
                                                    spec_.boundary.codec, spec_.audit.rounding_flips);
  const core::Deviation deviation = core::deviation_of(expected_values, claimed_values);
  const std::string excess = core::excess_of(deviation, core::tensor_limits(spec_.audit, allowance));
  if (deviation.comparable) extremes->add(deviation);
  return excess;
}

StatusOr<std::optional<AuditFault>> AuditJudge::microbatch(const core::Receipt& receipt, const ReplayedMicrobatch& replayed) {
  ++judged_;
  const auto fault = [&](AuditFinding finding, const std::string& what) {
    return AuditFault{finding, fmt::format("microbatch {} attempt {}, receipt {}: {}", receipt.microbatch, receipt.attempt,
                                           receipt.sequence, what)};
  };
  TESSERA_ASSIGN_OR_RETURN(const std::string activation, tensor(receipt.output_hash, replayed.output, &activations_));
  if (!activation.empty()) return fault(AuditFinding::kActivation, activation);
  if (receipt.stage + 1 == spec_.pipeline.stages) {
    loss_difference_ = std::max(loss_difference_, std::abs(replayed.loss - static_cast<double>(receipt.loss)));
    const std::string loss = core::loss_excess(spec_.audit, replayed.loss, receipt.loss);
    if (!loss.empty()) return fault(AuditFinding::kLoss, loss);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string gradient, tensor(receipt.gradient_out_hash, replayed.input_gradient, &gradients_));
  if (!gradient.empty()) return fault(AuditFinding::kGradient, gradient);
  return std::optional<AuditFault>();
}

std::optional<AuditFault> AuditJudge::delta(AuditFinding finding, const char* what, const std::vector<float>& start,
                                            const std::vector<float>& expected, const std::vector<float>& claimed,
                                            double allowance) {
  if (start.size() != expected.size() || start.size() != claimed.size()) {
    return AuditFault{finding, fmt::format("{}: {} values, the stage has {}", what, claimed.size(), expected.size())};
  }
  const core::Deviation deviation = core::deviation_of(difference(start, expected), difference(start, claimed));
  if (deviation.comparable) deltas_.add(deviation);
  // Who computes every tensor to the bit as the miner did has the miner's arithmetic: then a change of the weights has no more
  // reason to differ than a tensor, and nothing can hide in what devices of other kinds are allowed.
  const bool same_arithmetic = compared_ == 0 && same_bits_ > 0;
  const std::string excess = core::excess_of(deviation, same_arithmetic ? core::tensor_limits(spec_.audit, allowance)
                                                                        : core::delta_limits(spec_.audit, allowance));
  if (excess.empty()) return std::nullopt;
  return AuditFault{finding, fmt::format("{}: {}", what, excess)};
}

nlohmann::json AuditJudge::evidence() const {
  const auto figures = [](const Extremes& extremes) {
    return nlohmann::json{{"relative_error", extremes.relative_error}, {"cosine", extremes.cosine}, {"norm_deviation", extremes.norm_deviation}};
  };
  return {{"judged_microbatches", judged_},
          {"tensors_with_the_same_bits", same_bits_},
          {"tensors_compared", compared_},
          {"largest_deviation_of_activations", figures(activations_)},
          {"largest_deviation_of_gradients", figures(gradients_)},
          {"largest_deviation_of_weight_deltas", figures(deltas_)},
          {"largest_loss_difference", loss_difference_}};
}

}  // namespace tessera::node
