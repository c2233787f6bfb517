#include "tessera/node/miner_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "tessera/base/log.h"

namespace tessera::node {
namespace {

constexpr TimeMs kUrgentReportMs = 10;   // shortest interval between reports
constexpr TimeMs kLastRetryMs = 5000;
constexpr TimeMs kDrainLimitMs = 10000;  // for what is in flight; then it leaves all the same

}  // namespace

MinerControl::MinerControl(MinerControlOptions options, MinerSurroundings& surroundings)
    : options_(std::move(options)), surroundings_(surroundings) {}

TimeMs MinerControl::report_interval() const {
  return miner_->report_is_urgent() ? kUrgentReportMs : miner_->spec().timeouts.sync_ms;
}

void MinerControl::work(TimeMs now) {
  if (over_) return;
  watch_drain(now);
  if (over_) return;
  if (miner_ && now - last_tick_ >= options_.tick_ms) {
    last_tick_ = now;
    step(now, core::miner_event::Ticked{});
    if (over_) return;
  }
  if (now < retry_at_) return;
  if (!registered_ && !registering_) {
    registering_ = true;
    surroundings_.register_miner(options_.registration);
  } else if (registered_ && !reporting_ && now - last_report_ >= report_interval()) {
    report(now);
  }
}

// It ends on request of the operator here or of the orchestrator; not one that joins again by itself.
void MinerControl::watch_drain(TimeMs now) {
  if (stopping_ && !draining_ && miner_) step(now, core::miner_event::DrainRequested{});
  if (over_ || !miner_) return;
  if (!draining_ && miner_->phase() == core::MinerPhase::kDraining && (stopping_ || !miner_->joins_again())) {
    draining_ = true;
    drain_until_ = now + kDrainLimitMs;
  }
  if (draining_ && (now >= drain_until_ || (farewell_answered_ && miner_->is_settled()))) {
    over_ = fmt::format("stopped; {} microbatches were left in flight", miner_->in_flight());
  }
}

TimeMs MinerControl::next() const {
  TimeMs next = std::numeric_limits<TimeMs>::max();
  if (miner_) next = std::min(next, last_tick_ + options_.tick_ms);
  if (draining_) next = std::min(next, drain_until_);
  if (!registered_ && !registering_) next = std::min(next, retry_at_);
  if (registered_ && !reporting_) next = std::min(next, std::max(retry_at_, last_report_ + report_interval()));
  return next;
}

void MinerControl::drain(TimeMs now) {
  stopping_ = true;
  if (miner_) {
    watch_drain(now);
  } else if (!over_) {
    over_ = std::string("stopped before it had joined a run");
  }
}

void MinerControl::retry_later(TimeMs now, const std::string& what, const Status& status) {
  if (orchestrator_answers_) {
    spdlog::warn("{}: {}; trying again until it answers", what, message_of(status));
    orchestrator_answers_ = false;
  }
  retry_at_ = now + retry_ms_ / 2 + static_cast<TimeMs>(options_.random() % static_cast<uint64_t>(retry_ms_));
  retry_ms_ = std::min(2 * retry_ms_, kLastRetryMs);
}

void MinerControl::on_registered(TimeMs now, const StatusOr<core::RegisterAnswer>& answer) {
  registering_ = false;
  if (!answer.ok()) {
    // Some errors no waiting mends.
    if (absl::IsInvalidArgument(answer.status()) || absl::IsUnauthenticated(answer.status()) ||
        absl::IsFailedPrecondition(answer.status())) {
      over_ = annotate(answer.status(), "registration refused");
    } else {
      retry_later(now, "the orchestrator does not answer", answer.status());
    }
    return;
  }
  if (answer->refusal != core::RegisterRefusal::kNone) {
    over_ = failed_precondition("registration refused: {}", answer->message);
    return;
  }
  if (!orchestrator_answers_) spdlog::info("the orchestrator answers");
  orchestrator_answers_ = true;
  retry_ms_ = kFirstRetryMs;
  surroundings_.joined(answer->run_id);
  if (miner_) {
    const bool same = answer->miner == registration_.miner && answer->run_id == registration_.run_id &&
                      answer->data_plan == registration_.data_plan;
    if (!same) {
      over_ = unavailable("the orchestrator has another run now; start again to join it");
      return;
    }
    registered_ = true;  // a new specification comes with the next answer
    return;
  }
  const Status status = begin(*answer);
  if (!status.ok()) {
    over_ = annotate(status, "the orchestrator's run");
    return;
  }
  registered_ = true;
}

Status MinerControl::begin(const core::RegisterAnswer& answer) {
  registration_ = answer;
  core::RunSpec spec;
  core::DataPlan data;
  if (!decode(answer.run_spec, &spec) || !decode(answer.data_plan, &data)) {
    return invalid_argument("its description can't be read; do both sides run the same version of Tessera?");
  }
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  if (core::window_count(data.train, spec.model.context) == 0) {
    return invalid_argument("its training data has no window of model.context {} tokens", spec.model.context);
  }
  core::MinerIdentity identity{.index = answer.miner,
                               .incarnation = options_.registration.incarnation,
                               .run_id = answer.run_id,
                               .unix_offset_ms = options_.unix_offset_ms,
                               .lease_key = answer.lease_key,
                               .sign = options_.sign,
                               .verify = options_.verify};
  miner_ = std::make_unique<core::Miner>(spec, std::move(identity));
  TESSERA_RETURN_IF_ERROR(surroundings_.begin(answer, spec, data, miner_->run_tag()));
  spdlog::info("joined run '{}' as miner {}", spec.name, answer.miner);
  return ok_status();
}

void MinerControl::report(TimeMs now) {
  reporting_ = true;
  last_report_ = now;
  core::SyncRequest request = miner_->report();
  surroundings_.add_to(&request.status);
  farewell_sent_ = draining_ && request.status.in_flight == 0 && request.receipts.size() < core::kMaxReceiptsPerSync;
  surroundings_.sync(std::move(request));
}

void MinerControl::on_answered(TimeMs now, StatusOr<core::SyncAnswer> answer) {
  reporting_ = false;
  if (!answer.ok()) {
    if (absl::IsUnauthenticated(answer.status())) {
      registered_ = false;  // it was restarted and knows the session no more
      return;
    }
    retry_later(now, "the orchestrator does not answer", answer.status());
    return;
  }
  if (!orchestrator_answers_) spdlog::info("the orchestrator answers again");
  orchestrator_answers_ = true;
  retry_ms_ = kFirstRetryMs;
  farewell_answered_ = farewell_sent_;
  if (!answer->known) {
    registered_ = false;
    return;
  }
  step(now, core::miner_event::AnswerArrived{std::move(*answer)});
}

void MinerControl::step(TimeMs now, core::MinerEvent event) {
  if (!miner_) return;
  for (core::MinerEffect& effect : miner_->step(now, std::move(event))) perform(std::move(effect));
  note_progress();
  if (rejoin_ && !over_) begin_again(*rejoin_);
}

// What a restart could not bring back is counted with it.
void MinerControl::note_progress() {
  if (miner_->phase() == core::MinerPhase::kLoading || !miner_->stage()) return;
  core::StepNote note = miner_->step_note();
  if (note == noted_ || note.steps == 0) return;
  const Status status = surroundings_.note_steps(note);
  if (!status.ok() && noted_.steps == 0) spdlog::warn("the number of local steps can't be noted: {}", message_of(status));
  noted_ = std::move(note);
}

// Leaves the stage and joins again as another incarnation, as a new process would: engine, base and state machine are made
// anew.
void MinerControl::begin_again(const std::string& reason) {
  spdlog::info("joins again: {}", reason);
  rejoin_.reset();
  surroundings_.end_incarnation();
  miner_.reset();
  options_.registration.incarnation = options_.random();
  registered_ = registering_ = reporting_ = farewell_sent_ = farewell_answered_ = false;
  retry_at_ = 0;
}

void MinerControl::perform(core::MinerEffect effect) {
  if (auto* reply = std::get_if<core::miner_effect::ReplyAdmission>(&effect)) {
    surroundings_.reply(*reply);
  } else if (auto* send = std::get_if<core::miner_effect::SendFrame>(&effect)) {
    surroundings_.send(std::move(*send));
  } else if (auto* probe = std::get_if<core::miner_effect::Probe>(&effect)) {
    surroundings_.probe(*probe);
  } else if (auto* read = std::get_if<core::miner_effect::ReadTokens>(&effect)) {
    surroundings_.read_tokens(read->key);
  } else if (auto* job = std::get_if<core::ComputeJob>(&effect)) {
    surroundings_.compute(std::move(*job));
  } else if (auto* background = std::get_if<core::BackgroundJob>(&effect)) {
    surroundings_.background(std::move(*background));
  } else if (auto* leave = std::get_if<core::miner_effect::Leave>(&effect)) {
    if (leave->rejoin && !draining_) {
      rejoin_ = leave->reason;
    } else {
      over_ = leave->reason;
    }
  } else {
    surroundings_.say(std::get<core::miner_effect::Say>(effect));
  }
}

}  // namespace tessera::node
