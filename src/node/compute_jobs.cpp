#include "tessera/node/compute_jobs.h"

#include <algorithm>

#include "tessera/core/payload_name.h"
#include "tessera/kernels/merge.h"

namespace tessera::node {
namespace {

using core::miner_event::BackwardDone;
using core::miner_event::BaseApplied;
using core::miner_event::ComputeFailed;
using core::miner_event::ForwardDone;
using core::miner_event::LocalStateExported;
using core::miner_event::SnapshotTaken;
using core::miner_event::StateInstalled;
using core::miner_event::StepDone;

}  // namespace

void ComputeJobs::run(core::ComputeJob& job) {
  std::visit([this](auto& j) { work(j); }, job);
}

bool ComputeJobs::is_fatal(const Status& status) {
  const bool fatal = absl::IsInternal(status) || absl::IsResourceExhausted(status);
  if (fatal) fatal_(status);
  return fatal;
}

void ComputeJobs::work(core::miner_effect::Forward& job) {
  const double began_ms = clock_ms_();
  auto result = engine_->forward(job.key, *job.tokens, job.input);
  if (result.ok()) {
    keep(job.input);
    keep(result->output);
  }
  if (!result.ok()) {
    if (!is_fatal(result.status())) post_(ComputeFailed{job.key, "forward: " + message_of(result.status())});
    return;
  }
  ForwardDone done{.key = job.key,
                   .output = std::move(result->output),
                   .output_hash = {},
                   .loss = result->loss,
                   .weight_version = result->weight_version,
                   .milliseconds = static_cast<float>(clock_ms_() - began_ms)};
  done.output_hash = core::name_of(done.output);
  post_(std::move(done));
}

void ComputeJobs::work(core::miner_effect::Backward& job) {
  const double began_ms = clock_ms_();
  auto result = engine_->backward(job.key, job.output_gradient, job.accumulate, [&](core::BoundaryPayload gradient) {
    core::miner_event::InputGradientReady ready{.key = job.key, .input_gradient = std::move(gradient), .gradient_hash = {}};
    ready.gradient_hash = core::name_of(ready.input_gradient);
    keep(ready.input_gradient);
    post_(std::move(ready));
  });
  if (!result.ok()) {
    if (!is_fatal(result.status())) post_(ComputeFailed{job.key, "backward: " + message_of(result.status())});
    return;
  }
  BackwardDone done{.key = job.key,
                    .input_gradient = std::move(result->input_gradient),
                    .gradient_hash = {},
                    .milliseconds = static_cast<float>(clock_ms_() - began_ms)};
  done.gradient_hash = core::name_of(done.input_gradient);
  keep(job.output_gradient);
  keep(done.input_gradient);
  post_(std::move(done));
}

void ComputeJobs::work(core::miner_effect::Discard& job) {
  if (engine_) engine_->discard(job.key);
}

void ComputeJobs::work(core::miner_effect::OptimizerStep& job) {
  auto result = engine_->step(job.learning_rate);
  if (result.ok()) {
    post_(StepDone{true, result->gradient_norm, result->weight_version, ""});
  } else if (!is_fatal(result.status())) {
    post_(StepDone{false, 0, engine_->weight_version(), message_of(result.status())});
  }
}

Status ComputeJobs::install(const core::miner_effect::InstallState& job, StateInstalled* done) {
  if (!engine_) {
    TESSERA_ASSIGN_OR_RETURN(engine_, make_engine_());
  }
  if (job.local_state) {
    TESSERA_RETURN_IF_ERROR(engine_->import_state(*job.local_state));
  } else if (job.masters) {
    TESSERA_RETURN_IF_ERROR(engine_->set_masters(*job.masters));
  } else {
    done->initial_masters = std::make_shared<const std::vector<float>>(engine_->masters());
  }
  done->weight_version = engine_->weight_version();
  done->accumulated = engine_->accumulated_microbatches();
  return ok_status();
}

void ComputeJobs::work(core::miner_effect::InstallState& job) {
  StateInstalled done;
  const Status status = install(job, &done);
  if (is_fatal(status)) return;
  done.ok = status.ok();
  done.why = message_of(status);
  post_(std::move(done));
}

void ComputeJobs::work(core::miner_effect::TakeSnapshot& job) {
  SnapshotTaken done{.target = job.target, .masters = {}, .weight_version = engine_->weight_version(), .moments = {}};
  if (job.with_moments) {
    core::LocalState state = engine_->export_state();
    done.masters = std::make_shared<const std::vector<float>>(std::move(state.masters));
    done.moments = std::make_shared<const core::Moments>(
        core::Moments{std::move(state.first_moment), std::move(state.second_moment)});
  } else {
    done.masters = std::make_shared<const std::vector<float>>(engine_->masters());
  }
  post_(std::move(done));
}

void ComputeJobs::work(core::miner_effect::ApplyBase& job) {
  std::vector<float> masters = job.reference ? engine_->masters() : *job.base;
  if (job.reference) {
    kernels::carry_over_cpu(masters.data(), job.reference->data(), job.base->data(), masters.size());
  }
  Status status = ok_status();
  if (job.reset_moments || job.moments) {
    core::LocalState state = engine_->export_state();
    state.masters = std::move(masters);
    if (job.moments) {
      state.first_moment = job.moments->first;
      state.second_moment = job.moments->second;
      state.optimizer_steps = std::max(state.optimizer_steps, job.moments_age);
    } else {
      state.first_moment.assign(state.first_moment.size(), 0.0f);
      state.second_moment.assign(state.second_moment.size(), 0.0f);
      state.optimizer_steps = 0;
    }
    status = engine_->import_state(state);
  } else {
    status = engine_->set_masters(masters);
  }
  if (!status.ok()) {
    fatal_(status);
    return;
  }
  post_(BaseApplied{job.target, engine_->weight_version()});
}

void ComputeJobs::work(core::miner_effect::ExportLocalState& job) {
  post_(LocalStateExported{job.id, std::make_shared<const core::LocalState>(engine_->export_state())});
}

void ComputeJobs::work(core::miner_effect::ExportSegment& job) {
  const double began_ms = clock_ms_();
  core::miner_event::SegmentExported done;
  done.number = job.number;
  auto older = engine_->older_weights();
  if (older.ok()) {
    done.state = std::make_shared<const core::LocalState>(engine_->export_state());
    done.older = *std::move(older);
  }
  done.milliseconds = clock_ms_() - began_ms;
  post_(std::move(done));
}

}  // namespace tessera::node
