// What is behind OrchestratorNode: its threads, and the queues between them.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <variant>

#include "tessera/base/bounded_queue.h"
#include "tessera/base/clock.h"
#include "tessera/node/orchestrator_node.h"

namespace tessera::node {

class OrchestratorNode::Shell {
 public:
  Shell(OrchestratorOptions options, const OrchestratorPorts& ports);
  ~Shell() { close(); }

  Status start();
  StatusOr<std::string> run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon);
  const std::string& run_id() const { return control_.run_id(); }

  // No call is taken any more, and those that wait are told so.
  void close();

  // Any thread.
  template <class C>
  void enqueue(C call) {
    auto done = call.done;
    if (calls_.push(std::move(call)) != PushResult::kOk) {
      done(error(absl::StatusCode::kResourceExhausted, "the orchestrator is overloaded or stopping; try again"));
    }
  }

 private:
  OrchestratorSurroundings surroundings();
  void background_loop();
  void sweep_if_due();

  const OrchestratorPorts ports_;
  BoundedQueue<Call> calls_{65536};
  BoundedQueue<OrchestratorJob> jobs_{1u << 20};  // more than a merge has shards
  OrchestratorJobs jobs_of_background_;           // the background thread's
  OrchestratorControl control_;                   // run()'s caller's
  TimeMs swept_at_ = monotonic_now_ms();
  std::jthread background_;
};

}  // namespace tessera::node
