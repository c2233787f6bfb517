// One audit from beginning to end: fetches what the task names, re-runs the segment, compares, writes the evidence.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "tessera/core/audit_messages.h"
#include "tessera/core/data_plan.h"
#include "tessera/ports/links.h"
#include "tessera/ports/stage_engine.h"
#include "tessera/ports/token_source.h"

namespace tessera::node {

struct AuditorOptions {
  // An engine that adds up in the order of such a box.
  std::function<StatusOr<std::unique_ptr<ports::StageEngine>>(const core::RunSpec&, StageIndex, const core::BoxShape&)> make_engine;
  std::string device;  // of the engine, for the evidence
};

// Used by one thread.
class Auditor {
 public:
  Auditor(AuditorOptions options, const core::RunSpec& spec, const core::DataPlan& data, ports::BlobLink& blobs,
          ports::TokenSource& tokens)
      : options_(std::move(options)), spec_(spec), data_(data), blobs_(blobs), tokens_(tokens) {}

  // Ends early, without a verdict, when `cancelled` becomes true.
  core::AuditResult audit(const core::AuditTask& task, const std::atomic<bool>& cancelled);

 private:
  class Case;

  const AuditorOptions options_;
  const core::RunSpec spec_;
  const core::DataPlan data_;
  ports::BlobLink& blobs_;
  ports::TokenSource& tokens_;
};

}  // namespace tessera::node
