#include "tessera/node/miner_node.h"

#include <fmt/format.h>

#include "local_checkpoint.h"
#include "miner_shell.h"
#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"

namespace tessera::node {
namespace {

constexpr auto kWait = std::chrono::milliseconds(10);

}  // namespace

void MinerNode::Shell::post(Input input) {
  std::shared_ptr<BoundedQueue<Input>> inputs;
  {
    std::lock_guard lock(mutex_);
    inputs = inputs_;
  }
  TESSERA_CHECK(inputs->push(std::move(input)) != PushResult::kFull);
}

MinerNode::Shell::Shell(MinerOptions options, MinerLinks links)
    : options_(std::move(options)),
      links_(links),
      control_({.registration = options_.registration,
                .sign = [key = options_.key](std::string_view bytes) { return key->sign(bytes); },
                .verify = verify,
                .unix_offset_ms = unix_now_ms() - monotonic_now_ms(),
                .random = random_u64},
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

Status MinerNode::Shell::begin(const core::RegisterAnswer& answer, const core::RunSpec& spec, const core::DataPlan& data,
                               uint64_t run_tag) {
  spec_ = spec;
  data_ = data;
  links_.peers->on_broken([queue = inputs_](const NodeId& node) {
    queue->push(MinerEvent(core::miner_event::PeerBroken{node}));
  });
  const auto post_event = [this](MinerEvent event) { post(std::move(event)); };
  background_ = std::make_unique<BackgroundWorker>(spec_, *links_.blobs, options_.directory, answer.run_id, post_event,
                                                  Donations{links_.donors, &donated_}, options_.reducer);
  if (spec_.audit.enabled) audit_ = std::make_unique<AuditWorker>(*links_.blobs, post_event);
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
  if (!audit_) return;
  status->payloads_stored = audit_->stored();
  status->payloads_dropped = audit_->dropped();
}

// One small file, written when a step is done.
Status MinerNode::Shell::note_steps(const core::StepNote& note) {
  return options_.directory.empty() ? ok_status() : node::note_steps(options_.directory, note);
}

// What comes late for the old incarnation goes into its queue, which nobody reads any more.
void MinerNode::Shell::end_incarnation() {
  {
    std::lock_guard lock(mutex_);
    facts_.reset();
  }
  inputs_->close();
  refuse_waiting();
  data_jobs_->close();
  if (data_thread_.joinable()) data_thread_.join();
  compute_.reset();
  background_.reset();
  audit_.reset();
  data_jobs_ = std::make_unique<BoundedQueue<core::MicrobatchKey>>(1024);
  std::lock_guard lock(mutex_);
  inputs_ = std::make_shared<BoundedQueue<Input>>(16384);
}

void MinerNode::Shell::read_tokens(core::MicrobatchKey key) {
  if (data_jobs_->push(key) == PushResult::kOk) return;
  post(MinerEvent(core::miner_event::TokensRead{key, {}, false, "too many microbatches wait for their tokens"}));
}

void MinerNode::Shell::compute(core::ComputeJob job) {
  if (!compute_) {
    const StageIndex stage = control_.miner()->stage().value();
    compute_ = std::make_unique<ComputeWorker>(
        [this, stage, spec = spec_] { return options_.make_engine(spec, stage); },
        [this](MinerEvent event) { post(std::move(event)); }, [this](Status status) { post(Fatal{std::move(status)}); },
        audit_ ? ComputeJobs::KeepPayload([this](const core::BoundaryPayload& payload) { audit_->keep(payload); })
               : ComputeJobs::KeepPayload());
  }
  compute_->run(std::move(job));
}

void MinerNode::Shell::background(core::BackgroundJob job) {
  if (auto* segment = std::get_if<core::miner_effect::StoreSegment>(&job); segment != nullptr && audit_) {
    audit_->store(std::move(*segment));
  } else {
    background_->run(std::move(job));
  }
}

void MinerNode::Shell::say(const core::miner_effect::Say& effect) {
  spdlog::log(effect.warning ? spdlog::level::warn : spdlog::level::info, "{}", effect.text);
}

void MinerNode::Shell::data_loop() {
  name_thread("data");
  while (true) {
    std::optional<core::MicrobatchKey> key = data_jobs_->pop(std::chrono::milliseconds(1000));
    if (key) {
      fetch_tokens(*key);
    } else if (data_jobs_->closed()) {
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

StatusOr<std::string> MinerNode::donate(const Digest& name) { return shell_->donate(name); }

void MinerNode::on_probe(const ports::Caller&, std::function<void(StatusOr<core::PeerHealth>)> done) {
  shell_->on_probe(std::move(done));
}

}  // namespace tessera::node
