#include "tessera/node/miner_node.h"

#include <fmt/format.h>

#include <algorithm>

#include "local_checkpoint.h"
#include "miner_shell.h"
#include "tessera/base/log.h"

namespace tessera::node {
namespace {

constexpr TimeMs kTickMs = 20;
constexpr TimeMs kUrgentReportMs = 10;         // shortest interval between reports
constexpr TimeMs kLastRetryMs = 5000;
constexpr TimeMs kDrainLimitMs = 10000;        // for what is in flight; then it leaves all the same


}  // namespace

void MinerNode::Shell::post(Input input) {
  std::shared_ptr<BoundedQueue<Input>> inputs;
  {
    std::lock_guard lock(mutex_);
    inputs = inputs_;
  }
  TESSERA_CHECK(inputs->push(std::move(input)) != PushResult::kFull);
}

StatusOr<std::string> MinerNode::Shell::run(const std::atomic<bool>& stop) {
  TimeMs drain_until = 0;
  while (!over_) {
    const TimeMs now = monotonic_now_ms();
    if (stop.load() && !miner_) return std::string("stopped before it had joined a run");
    if (stop.load() && !draining_) step(core::miner_event::DrainRequested{});
    // On request of the operator here, or of the orchestrator; not one that joins again by itself.
    if (!draining_ && miner_ && miner_->phase() == core::MinerPhase::kDraining && (stop.load() || !miner_->joins_again())) {
      draining_ = true;
      drain_until = now + kDrainLimitMs;
    }
    if (draining_ && (now >= drain_until || (farewell_answered_ && miner_->is_settled()))) {
      return fmt::format("stopped; {} microbatches were left in flight", miner_->in_flight());
    }
    if (!registered_ && !registering_ && now >= retry_at_) {
      registering_ = true;
      links_.orchestrator->register_miner(options_.registration, [queue = inputs_](StatusOr<core::RegisterAnswer> answer) {
        queue->push(Registered{std::move(answer)});
      });
    }
    if (registered_ && !reporting_ && now >= retry_at_) {
      const TimeMs since = now - last_report_;
      if (since >= miner_->spec().timeouts.sync_ms || (miner_->report_is_urgent() && since >= kUrgentReportMs)) report();
    }
    std::optional<Input> input = inputs_->pop(std::chrono::milliseconds(kUrgentReportMs));
    // What waits is handled in one go, so that a report carries all of it.
    for (int i = 0; input && i < 256; ++i) {
      handle(std::move(*input));
      if (over_) return *over_;
      if (rejoin_) begin_again(*rejoin_);
      input = inputs_->try_pop();
    }
    if (input) handle(std::move(*input));
    if (rejoin_) begin_again(*rejoin_);
    if (over_) return *over_;
    if (miner_ && now - last_tick_ >= kTickMs) {
      last_tick_ = now;
      step(core::miner_event::Ticked{});
    }
  }
  return *over_;
}

void MinerNode::Shell::handle(Input input) {
  if (auto* event = std::get_if<MinerEvent>(&input)) {
    if (miner_) step(std::move(*event));
  } else if (auto* registered = std::get_if<Registered>(&input)) {
    on_registered(registered->answer);
  } else if (auto* answered = std::get_if<Answered>(&input)) {
    on_answered(std::move(answered->answer));
  } else if (auto* probed = std::get_if<Probed>(&input)) {
    answer_probe(probed->reply);
  } else {
    over_ = std::get<Fatal>(input).status;
  }
}

void MinerNode::Shell::retry_later(const std::string& what, const Status& status) {
  if (orchestrator_answers_) {
    spdlog::warn("{}: {}; trying again until it answers", what, message_of(status));
    orchestrator_answers_ = false;
  }
  retry_at_ = monotonic_now_ms() + retry_ms_ / 2 + static_cast<TimeMs>(jitter_.below(static_cast<uint64_t>(retry_ms_)));
  retry_ms_ = std::min(2 * retry_ms_, kLastRetryMs);
}

void MinerNode::Shell::on_registered(const StatusOr<core::RegisterAnswer>& answer) {
  registering_ = false;
  if (!answer.ok()) {
    // Some errors no waiting mends.
    if (absl::IsInvalidArgument(answer.status()) || absl::IsUnauthenticated(answer.status()) ||
        absl::IsFailedPrecondition(answer.status())) {
      over_ = annotate(answer.status(), "registration refused");
    } else {
      retry_later("the orchestrator does not answer", answer.status());
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
  if (options_.joined) options_.joined(answer->run_id);
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

Status MinerNode::Shell::begin(const core::RegisterAnswer& answer) {
  registration_ = answer;
  if (!decode(answer.run_spec, &spec_) || !decode(answer.data_plan, &data_)) {
    return invalid_argument("its description can't be read; do both sides run the same version of Tessera?");
  }
  TESSERA_RETURN_IF_ERROR(core::validate(&spec_));
  if (core::window_count(data_.train, spec_.model.context) == 0) {
    return invalid_argument("its training data has no window of model.context {} tokens", spec_.model.context);
  }
  core::MinerIdentity identity{.index = answer.miner,
                               .incarnation = options_.registration.incarnation,
                               .run_id = answer.run_id,
                               .unix_offset_ms = unix_now_ms() - monotonic_now_ms(),
                               .sign = [key = options_.key](std::string_view bytes) { return key->sign(bytes); }};
  miner_ = std::make_unique<core::Miner>(spec_, std::move(identity));
  links_.peers->on_broken([queue = inputs_](const NodeId& node) {
    queue->push(MinerEvent(core::miner_event::PeerBroken{node}));
  });
  const auto post_event = [this](MinerEvent event) { post(std::move(event)); };
  background_ = std::make_unique<BackgroundWorker>(spec_, *links_.blobs, options_.directory, answer.run_id, post_event);
  data_thread_ = std::jthread([this] { data_loop(); });
  {
    auto facts = std::make_shared<RunFacts>();
    facts->spec = spec_;
    facts->run_tag = miner_->run_tag();
    std::lock_guard lock(mutex_);
    facts_ = std::move(facts);
  }
  spdlog::info("joined run '{}' as miner {}", spec_.name, answer.miner);
  return ok_status();
}

void MinerNode::Shell::report() {
  reporting_ = true;
  last_report_ = monotonic_now_ms();
  core::SyncRequest request = miner_->report();
  request.status.peer_bytes_sent = links_.peers->bytes_sent();
  request.status.frames_refused += unreadable_frames_.load();
  farewell_sent_ = draining_ && request.status.in_flight == 0 && request.receipts.size() < core::kMaxReceiptsPerSync;
  links_.orchestrator->sync(std::move(request), [queue = inputs_](StatusOr<core::SyncAnswer> answer) {
    queue->push(Answered{std::move(answer)});
  });
}

void MinerNode::Shell::on_answered(StatusOr<core::SyncAnswer> answer) {
  reporting_ = false;
  if (!answer.ok()) {
    if (absl::IsUnauthenticated(answer.status())) {
      registered_ = false;  // it was restarted and knows the session no more
      return;
    }
    retry_later("the orchestrator does not answer", answer.status());
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
  step(core::miner_event::AnswerArrived{std::move(*answer)});
}

void MinerNode::Shell::step(MinerEvent event) {
  for (core::MinerEffect& effect : miner_->step(monotonic_now_ms(), std::move(event))) perform(std::move(effect));
  note_progress();
}

// What a restart could not bring back is counted with it. One small file, written when a step is done.
void MinerNode::Shell::note_progress() {
  if (options_.directory.empty() || miner_->phase() == core::MinerPhase::kLoading || !miner_->stage()) return;
  core::StepNote note = miner_->step_note();
  if (note == noted_ || note.steps == 0) return;
  const Status status = note_steps(options_.directory, note);
  if (!status.ok() && noted_.steps == 0) spdlog::warn("the number of local steps can't be noted: {}", message_of(status));
  noted_ = std::move(note);
}

// Leaves the stage and joins again as another incarnation, as a new process would: engine, base and state machine are made
// anew. What comes late for the old ones goes into their queue, which nobody reads any more.
void MinerNode::Shell::begin_again(const std::string& reason) {
  rejoin_.reset();
  spdlog::info("joins again: {}", reason);
  {
    std::lock_guard lock(mutex_);
    facts_.reset();
  }
  inputs_->close();
  refuse_waiting_frames();
  data_jobs_->close();
  if (data_thread_.joinable()) data_thread_.join();
  compute_.reset();
  background_.reset();
  miner_.reset();
  data_jobs_ = std::make_unique<BoundedQueue<core::MicrobatchKey>>(1024);
  {
    std::lock_guard lock(mutex_);
    inputs_ = std::make_shared<BoundedQueue<Input>>(16384);
  }
  options_.registration.incarnation = random_u64();
  registered_ = registering_ = reporting_ = farewell_sent_ = farewell_answered_ = false;
  retry_at_ = 0;
}

void MinerNode::Shell::perform(core::MinerEffect effect) {
  if (auto* reply = std::get_if<core::miner_effect::ReplyAdmission>(&effect)) {
    std::function<void(core::Admission)> done;
    {
      std::lock_guard lock(mutex_);
      const auto found = replies_.find(reply->reply);
      if (found == replies_.end()) return;
      done = std::move(found->second);
      replies_.erase(found);
    }
    done(reply->admission);
  } else if (auto* send = std::get_if<core::miner_effect::SendFrame>(&effect)) {
    perform_send(std::move(*send));
  } else if (auto* probe = std::get_if<core::miner_effect::Probe>(&effect)) {
    perform_probe(std::move(*probe));
  } else if (auto* read = std::get_if<core::miner_effect::ReadTokens>(&effect)) {
    if (data_jobs_->push(read->key) != PushResult::kOk) {
      post(MinerEvent(core::miner_event::TokensRead{read->key, {}, false, "too many microbatches wait for their tokens"}));
    }
  } else if (auto* job = std::get_if<core::ComputeJob>(&effect)) {
    if (!compute_) {
      const StageIndex stage = miner_->stage().value();
      compute_ = std::make_unique<ComputeWorker>(
          [this, stage, spec = spec_] { return options_.make_engine(spec, stage); },
          [this](MinerEvent event) { post(std::move(event)); }, [this](Status status) { post(Fatal{std::move(status)}); });
    }
    compute_->run(std::move(*job));
  } else if (auto* background = std::get_if<core::BackgroundJob>(&effect)) {
    background_->run(std::move(*background));
  } else if (auto* leave = std::get_if<core::miner_effect::Leave>(&effect)) {
    if (leave->rejoin && !draining_) {
      rejoin_ = leave->reason;
    } else {
      over_ = leave->reason;
    }
  } else {
    const auto& say = std::get<core::miner_effect::Say>(effect);
    spdlog::log(say.warning ? spdlog::level::warn : spdlog::level::info, "{}", say.text);
  }
}

void MinerNode::Shell::data_loop() {
  while (true) {
    std::optional<core::MicrobatchKey> key = data_jobs_->pop(std::chrono::milliseconds(1000));
    if (key) {
      read_tokens(*key);
    } else if (data_jobs_->closed()) {
      return;
    }
  }
}

void MinerNode::Shell::read_tokens(core::MicrobatchKey key) {
  core::miner_event::TokensRead event;
  event.key = key;
  const auto windows = core::windows_of(data_.train, spec_.model.context, spec_.training.seed, key.microbatch,
                                        spec_.training.microbatch_size);
  for (const core::Window& window : windows) {
    auto tokens = links_.tokens->read(data_.train[window.shard], window.first_token, spec_.model.context + 1);
    if (!tokens.ok()) {
      event.ok = false;
      event.why = "reading the training data: " + message_of(tokens.status());
      break;
    }
    event.tokens.insert(event.tokens.end(), tokens->begin(), tokens->end());
  }
  post(MinerEvent(std::move(event)));
}

MinerNode::MinerNode(MinerOptions options, MinerLinks links)
    : shell_(std::make_unique<Shell>(std::move(options), links)) {}

MinerNode::~MinerNode() { shell_->close(); }

void MinerNode::set_address(std::string address) { shell_->set_address(std::move(address)); }

StatusOr<std::string> MinerNode::run(const std::atomic<bool>& stop) {
  StatusOr<std::string> why = shell_->run(stop);
  shell_->close();
  return why;
}

void MinerNode::on_frame(const ports::Caller& caller, std::string frame, std::function<void(core::Admission)> done) {
  shell_->on_frame(caller, std::move(frame), std::move(done));
}

void MinerNode::on_probe(const ports::Caller&, std::function<void(StatusOr<core::PeerHealth>)> done) {
  shell_->on_probe(std::move(done));
}

}  // namespace tessera::node
