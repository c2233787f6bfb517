// A validator in the process of a NodeSwarm's orchestrator.
#pragma once

#include <future>

#include "tessera/node/orchestrator_node.h"
#include "tessera/ports/links.h"

namespace tessera::test {

class ProcessValidatorLink final : public ports::ValidatorLink {
 public:
  ProcessValidatorLink(ports::OrchestratorHandler& orchestrator, const NodeId& node) : orchestrator_(orchestrator), node_(node) {}
  StatusOr<core::ValidatorOrders> report(const core::ValidatorReport& report) override {
    auto answer = std::make_shared<std::promise<StatusOr<core::ValidatorOrders>>>();
    orchestrator_.on_validate({node_, "", "here"}, report,
                              [answer](StatusOr<core::ValidatorOrders> orders) { answer->set_value(std::move(orders)); });
    return answer->get_future().get();
  }

 private:
  ports::OrchestratorHandler& orchestrator_;
  const NodeId node_;
};

}  // namespace tessera::test
