#include "tessera/node/miner_node.h"

#include <fmt/format.h>

#include <algorithm>

#include "miner_shell.h"
#include "tessera/base/log.h"
#include "tessera/core/frame.h"

namespace tessera::node {
namespace {

constexpr size_t kFrameQueueLimit = 4096;      // a frame is refused above it; internal events still fit
constexpr auto kWait = std::chrono::milliseconds(10);
constexpr size_t kMaxProbes = 1024;            // that wait for the control thread

}  // namespace

void MinerNode::Shell::post(Input input) {
  TESSERA_CHECK(inputs_->push(std::move(input)) != PushResult::kFull);
}

void MinerNode::Shell::on_frame(const ports::Caller& caller, std::string bytes,
                                std::function<void(core::Admission)> done) {
  std::shared_ptr<const RunFacts> facts;
  {
    std::lock_guard lock(mutex_);
    facts = facts_;
  }
  if (!facts) return done(core::Admission::kNotReady);
  core::miner_event::FrameArrived event;
  std::string why;
  const core::Admission checked = core::decode_frame(bytes, facts->spec, facts->run_tag, &event.frame, &why);
  if (checked != core::Admission::kAccepted) {
    ++unreadable_frames_;
    spdlog::warn("frame of {} bytes from {} refused ({}): {}", bytes.size(), caller.node.brief(),
                 core::name_of(checked), why);
    return done(checked);
  }
  // A gradient is never refused for want of room: there are not more of them than microbatches let in.
  const bool forward = event.frame.direction == core::Direction::kForward;
  if (forward && inputs_->size() >= kFrameQueueLimit) return done(core::Admission::kFull);
  event.payload_hash = digest_of(event.frame.payload);
  event.sender = caller.node;
  {
    std::lock_guard lock(mutex_);
    event.reply = next_reply_++;
    replies_[event.reply] = done;
  }
  const uint64_t reply = event.reply;
  if (inputs_->push(MinerEvent(std::move(event))) == PushResult::kOk) return;
  bool unanswered = false;
  {
    std::lock_guard lock(mutex_);
    unanswered = replies_.erase(reply) > 0;
  }
  if (unanswered) done(core::Admission::kNotReady);
}

// Answered by the control thread, so that one that hangs does not seem well.
void MinerNode::Shell::on_probe(std::function<void(StatusOr<core::PeerHealth>)> done) {
  std::optional<uint64_t> reply;
  {
    std::lock_guard lock(mutex_);
    if (probes_.size() < kMaxProbes) {
      reply = next_reply_++;
      probes_[*reply] = done;
    }
  }
  if (!reply) return done(unavailable("too many probes wait for an answer; ask again later"));
  if (inputs_->push(Probed{*reply}) == PushResult::kOk) return;
  bool unanswered = false;
  {
    std::lock_guard lock(mutex_);
    unanswered = probes_.erase(*reply) > 0;
  }
  if (unanswered) done(unavailable("this miner takes nothing in now"));
}

void MinerNode::Shell::answer_probe(uint64_t reply) {
  std::function<void(StatusOr<core::PeerHealth>)> done;
  {
    std::lock_guard lock(mutex_);
    const auto found = probes_.find(reply);
    if (found == probes_.end()) return;
    done = std::move(found->second);
    probes_.erase(found);
  }
  if (control_.miner() != nullptr) {
    done(control_.miner()->health());
  } else {
    done(failed_precondition("this miner has not joined a run yet"));
  }
}

MinerNode::Shell::Shell(MinerOptions options, MinerLinks links)
    : options_(std::move(options)),
      links_(links),
      control_({.registration = options_.registration,
                .sign = [key = options_.key](std::string_view bytes) { return key->sign(bytes); },
                .unix_offset_ms = unix_now_ms() - monotonic_now_ms(),
                .jitter_seed = random_u64()},
               *this) {}

StatusOr<std::string> MinerNode::Shell::run(const std::atomic<bool>& stop) {
  while (true) {
    if (stop.load()) control_.drain(monotonic_now_ms());
    control_.work(monotonic_now_ms());
    if (control_.over()) return *control_.over();
    std::optional<Input> input = inputs_->pop(kWait);
    // What waits is handled in one go, so that a report carries all of it.
    for (int i = 0; input && i < 256; ++i) {
      handle(std::move(*input));
      if (control_.over()) return *control_.over();
      input = inputs_->try_pop();
    }
    if (input) handle(std::move(*input));
  }
}

void MinerNode::Shell::handle(Input input) {
  const TimeMs now = monotonic_now_ms();
  if (auto* event = std::get_if<MinerEvent>(&input)) {
    control_.step(now, std::move(*event));
  } else if (auto* registered = std::get_if<Registered>(&input)) {
    control_.on_registered(now, registered->answer);
  } else if (auto* answered = std::get_if<Answered>(&input)) {
    control_.on_answered(now, std::move(answered->answer));
  } else if (auto* probed = std::get_if<Probed>(&input)) {
    answer_probe(probed->reply);
  } else {
    control_.fail(std::move(std::get<Fatal>(input).status));
  }
}

void MinerNode::Shell::register_miner(const core::Registration& registration) {
  links_.orchestrator->register_miner(registration, [queue = inputs_](StatusOr<core::RegisterAnswer> answer) {
    queue->push(Registered{std::move(answer)});
  });
}

void MinerNode::Shell::sync(core::SyncRequest request) {
  links_.orchestrator->sync(std::move(request), [queue = inputs_](StatusOr<core::SyncAnswer> answer) {
    queue->push(Answered{std::move(answer)});
  });
}

Status MinerNode::Shell::begin(const core::RegisterAnswer&, const core::RunSpec& spec, const core::DataPlan& data,
                               uint64_t run_tag) {
  spec_ = spec;
  data_ = data;
  const auto post_event = [this](MinerEvent event) { post(std::move(event)); };
  background_ = std::make_unique<BackgroundWorker>(spec_, *links_.blobs, options_.directory, post_event);
  data_thread_ = std::jthread([this] { data_loop(); });
  auto facts = std::make_shared<RunFacts>();
  facts->spec = spec_;
  facts->run_tag = run_tag;
  std::lock_guard lock(mutex_);
  facts_ = std::move(facts);
  return ok_status();
}

void MinerNode::Shell::joined(const std::string& run_id) {
  if (options_.joined) options_.joined(run_id);
}

void MinerNode::Shell::add_to(core::MinerStatus* status) {
  status->peer_bytes_sent = links_.peers->bytes_sent();
  status->frames_refused += unreadable_frames_.load();
}

void MinerNode::Shell::reply(const core::miner_effect::ReplyAdmission& effect) {
  std::function<void(core::Admission)> done;
  {
    std::lock_guard lock(mutex_);
    const auto found = replies_.find(effect.reply);
    if (found == replies_.end()) return;
    done = std::move(found->second);
    replies_.erase(found);
  }
  done(effect.admission);
}

void MinerNode::Shell::send(core::miner_effect::SendFrame effect) {
  const uint64_t id = effect.send;
  links_.peers->send(effect.peer, core::encode_frame(effect.frame, spec_.model.vocab), effect.timeout_ms,
                     [queue = inputs_, id](core::Admission admission) {
                       queue->push(MinerEvent(core::miner_event::FrameAnswered{id, admission}));
                     });
}

void MinerNode::Shell::read_tokens(core::MicrobatchKey key) {
  if (data_jobs_.push(key) == PushResult::kOk) return;
  post(MinerEvent(core::miner_event::TokensRead{key, {}, false, "too many microbatches wait for their tokens"}));
}

void MinerNode::Shell::compute(core::ComputeJob job) {
  if (!compute_) {
    const StageIndex stage = control_.miner()->stage().value();
    compute_ = std::make_unique<ComputeWorker>(
        [this, stage] { return options_.make_engine(spec_, stage); },
        [this](MinerEvent event) { post(std::move(event)); }, [this](Status status) { post(Fatal{std::move(status)}); });
  }
  compute_->run(std::move(job));
}

void MinerNode::Shell::background(core::BackgroundJob job) { background_->run(std::move(job)); }

void MinerNode::Shell::say(const core::miner_effect::Say& effect) {
  spdlog::log(effect.warning ? spdlog::level::warn : spdlog::level::info, "{}", effect.text);
}

void MinerNode::Shell::data_loop() {
  while (true) {
    std::optional<core::MicrobatchKey> key = data_jobs_.pop(std::chrono::milliseconds(1000));
    if (key) {
      fetch_tokens(*key);
    } else if (data_jobs_.closed()) {
      return;
    }
  }
}

void MinerNode::Shell::fetch_tokens(core::MicrobatchKey key) {
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
