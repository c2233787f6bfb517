// What validators report and are given. On the control thread.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/base/log.h"
#include "tessera/node/orchestrator_control.h"

namespace tessera::node {

Status OrchestratorControl::handle_validate(ValidateCall& call) {
  const auto refuse = [&](Status status) {
    answers_.emplace_back([done = std::move(call.done), status = std::move(status)] { done(status); });
    return ok_status();
  };
  const NodeId& node = call.caller.node;
  if (!core_.state().created) return refuse(unavailable("this orchestrator has no run yet"));
  if (std::find(options_.validators.begin(), options_.validators.end(), node) == options_.validators.end()) {
    return refuse(error(absl::StatusCode::kPermissionDenied,
                        "{} is no validator of this run; add its key to 'validators' in the orchestrator's YAML", node.hex()));
  }
  validators_heard_[node] = monotonic();
  surroundings_.registered(node, blob_share(core_.state(), options_.blob_share_bytes));
  for (core::Event& event : core_.news_in(node, call.report)) TESSERA_RETURN_IF_ERROR(apply(std::move(event)));
  if (std::optional<core::Event> lease = core_.audit_request_in(node, call.report)) {
    TESSERA_RETURN_IF_ERROR(apply(std::move(*lease)));
  }
  answers_.emplace_back([done = std::move(call.done), orders = core_.orders_for(node, call.report)]() mutable {
    done(std::move(orders));
  });
  return ok_status();
}

Status OrchestratorControl::watch_validators() {
  const TimeMs limit = core_.state().spec.timeouts.miner_lost_ms;
  std::vector<NodeId> silent;
  for (const auto& [node, validator] : core_.state().audits.validators) {
    if (!validator.live) continue;
    // One that lived before this process began gets a full timeout to answer again.
    const auto [heard, first] = validators_heard_.try_emplace(node, monotonic());
    if (!first && monotonic() - heard->second > limit) silent.push_back(node);
  }
  for (const NodeId& node : silent) {
    TESSERA_RETURN_IF_ERROR(apply(core::ValidatorLost{node, fmt::format("silent for {} ms", limit)}));
  }
  return ok_status();
}

}  // namespace tessera::node
