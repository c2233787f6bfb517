// Life and death of a miner's processes, and their messages. Their work is in simulated_work.cpp.
#include "simulated_miner.h"

#include <algorithm>

namespace tessera::sim {
namespace {

constexpr TimeUs kCallTimeoutUs = 10000000;  // as the network's links have it
constexpr TimeUs kReadTokensUs = 1000;

}  // namespace

SimulatedMiner::SimulatedMiner(World& world, uint32_t node, MinerProfile profile)
    : world_(world), node_(node), key_(key_of_node(node)), profile_(profile) {}

void SimulatedMiner::start() {
  TESSERA_CHECK(!control_);
  ++generation_;
  incarnation_ = world_.random.next() | 1;
  node::MinerControlOptions options;
  options.registration.node = key_;
  options.registration.incarnation = incarnation_;
  options.registration.address = fmt::format("node-{}:1", node_);
  options.registration.device = "simulated";
  options.registration.memory_bytes = profile_.memory_bytes;
  options.registration.wanted_stage = profile_.wanted_stage;
  options.sign = [this](std::string_view bytes) { return sign_as(key_, bytes); };
  options.tick_ms = std::max<TimeMs>(1, static_cast<TimeMs>(world_.sim.tick_ms));
  options.jitter_seed = world_.random.next();
  session_.clear();
  call_ = 0;
  wake_us_ = kNever;
  drained_restart_us_ = 0;
  frozen_until_us_ = 0;
  comes_back_ = true;
  sends_.clear();
  callers_.clear();
  reads_.clear();
  held_.clear();
  compute_queue_.clear();
  compute_until_us_ = kNever;
  background_queue_.clear();
  background_until_us_ = kNever;
  background_events_.clear();
  control_ = std::make_unique<node::MinerControl>(std::move(options), *this);
  world_.trace.line("start {} {}", node_, generation_);
  world_.measures.process_began(node_, generation_);
  after_event();
}

// The process is gone. Whoever waits for it hears it from the system.
void SimulatedMiner::end(TimeUs restart_us) {
  control_.reset();
  compute_.reset();
  background_.reset();
  blobs_.reset();
  frozen_until_us_ = 0;
  world_.measures.process_ended(node_);
  note_capacity();
  for (const auto& [reply, caller] : callers_) {
    world_.send({.from = node_,
                 .to = caller.node,
                 .from_generation = generation_,
                 .to_generation = caller.generation,
                 .id = caller.send,
                 .bytes = 0,
                 .body = core::Admission::kUnreachable});
  }
  callers_.clear();
  comes_back_ = restart_us != kNever;
  if (comes_back_) world_.queue.push(restart_us, EventKind::kStart, node_, generation_);
}

void SimulatedMiner::kill(TimeUs restart_us) {
  world_.trace.line("kill {} {}", node_, generation_);
  if (stage_) world_.measures.struck(node_, *stage_, held_);
  end(restart_us);
}

void SimulatedMiner::freeze(TimeUs until_us) {
  world_.trace.line("freeze {} {}", node_, until_us - kBeginUs);
  if (stage_) world_.measures.struck(node_, *stage_, held_);
  const TimeUs now = world_.queue.now_us();
  const TimeUs longer = until_us - std::max(now, frozen_until_us_);
  if (longer <= 0) return;
  // What it is at takes as much longer.
  if (compute_until_us_ != kNever) compute_until_us_ += longer;
  if (background_until_us_ != kNever) background_until_us_ += longer;
  frozen_until_us_ = until_us;
  note_capacity();
}

void SimulatedMiner::thaw() {
  if (!alive()) return;
  frozen_until_us_ = 0;
  note_capacity();
  after_event();
}

void SimulatedMiner::cut(uint64_t mask, bool is_cut) {
  if (is_cut) {
    world_.network.cut(node_, mask);
    if (alive() && stage_) world_.measures.struck(node_, *stage_, held_);
  } else {
    world_.network.mend(node_, mask);
  }
  note_capacity();
}

void SimulatedMiner::drain(TimeUs restart_us) {
  world_.trace.line("drain {} {}", node_, generation_);
  drained_restart_us_ = restart_us;
  control_->drain(world_.queue.now_ms());
  after_event();
}

void SimulatedMiner::restart_if_down() {
  if (!alive() && comes_back_) start();
}

void SimulatedMiner::after_event() {
  if (!control_) return;
  if (!frozen()) control_->work(world_.queue.now_ms());
  if (control_->over()) {
    world_.trace.line("end {} {}", node_, generation_);
    const TimeUs again = world_.queue.now_us() + us_of_s(world_.sim.restart_s);
    end(drained_restart_us_ != 0 ? drained_restart_us_ : again);
    return;
  }
  note_capacity();
  wake_when_due();
}

void SimulatedMiner::wake_when_due() {
  const TimeMs next_ms = control_->next();
  if (next_ms == INT64_MAX) return;
  const TimeUs next = std::max(next_ms * 1000, world_.queue.now_us());
  if (next >= wake_us_) return;
  wake_us_ = next;
  world_.queue.push(next, EventKind::kWake, node_, generation_);
}

void SimulatedMiner::note_capacity() {
  if (const core::Miner* present = miner(); present != nullptr && present->stage())
    stage_ = present->stage();
  const bool works = alive() && !frozen() && !world_.network.is_cut(node_);
  if (!stage_) return;
  const double ms =
      layer_count() * (world_.sim.forward_ms_per_layer + world_.sim.backward_ms_per_layer);
  world_.measures.capacity(node_, works ? stage_ : std::nullopt, 1000 * profile_.speed / ms);
}

void SimulatedMiner::handle(const Event& event) {
  switch (event.kind) {
    case EventKind::kWake:
      if (event.at_us < wake_us_ && wake_us_ != kNever) return;  // another one is to come
      wake_us_ = kNever;
      break;
    case EventKind::kComputeDone:
      if (world_.queue.now_us() < compute_until_us_) {
        if (compute_until_us_ != kNever) {
          world_.queue.push(compute_until_us_, EventKind::kComputeDone, node_, generation_);
        }
        return;
      }
      finish_compute();
      break;
    case EventKind::kBackgroundDone:
      if (world_.queue.now_us() < background_until_us_) {
        if (background_until_us_ != kNever) {
          world_.queue.push(background_until_us_, EventKind::kBackgroundDone, node_, generation_);
        }
        return;
      }
      finish_background();
      break;
    case EventKind::kTokensRead: {
      core::miner_event::TokensRead read;
      read.key = reads_.extract(event.value).mapped();
      read.ok = !world_.fails(world_.sim.job_failures);
      const auto& training = world_.spec.training;
      if (world_.whole_tensors)
        read.tokens.assign(training.microbatch_size * (world_.spec.model.context + 1), 1);
      step(std::move(read));
      break;
    }
    case EventKind::kSendTimeout:
      if (sends_.erase(event.value) == 0) return;
      world_.trace.line("timeout {} send {}", node_, event.value);
      step(core::miner_event::FrameAnswered{event.value, core::Admission::kUnreachable});
      break;
    case EventKind::kCallTimeout:
      if (call_ != event.value) return;
      on_call_answered(event.value);
      if (call_is_registration_) {
        control_->on_registered(world_.queue.now_ms(), unavailable("no answer in time"));
      } else {
        control_->on_answered(world_.queue.now_ms(), unavailable("no answer in time"));
      }
      break;
    default:
      TESSERA_CHECK(false && "no event of a miner");
  }
  after_event();
}

void SimulatedMiner::receive(Message message) {
  if (message.is_answer() && message.to_generation != generation_) return;
  if (std::holds_alternative<core::Frame>(message.body)) {
    on_frame(message);
  } else if (const auto* admission = std::get_if<core::Admission>(&message.body)) {
    if (sends_.erase(message.id) == 0) return;  // too late
    world_.trace.line("answer {} send {} {}", node_, message.id, core::name_of(*admission));
    step(core::miner_event::FrameAnswered{message.id, *admission});
  } else {
    if (message.id != call_) return;
    on_call_answered(message.id);
    if (auto* registered = std::get_if<StatusOr<core::RegisterAnswer>>(&message.body)) {
      if (registered->ok()) session_ = (*registered)->session;
      world_.trace.line("registered {} {}", node_, registered->ok());
      control_->on_registered(world_.queue.now_ms(), *registered);
    } else {
      auto& answer = std::get<StatusOr<core::SyncAnswer>>(message.body);
      world_.trace.line("synced {} {}", node_, answer.ok());
      control_->on_answered(world_.queue.now_ms(), std::move(answer));
    }
  }
  after_event();
}

void SimulatedMiner::on_frame(Message& message) {
  core::miner_event::FrameArrived event;
  event.frame = std::move(std::get<core::Frame>(message.body));
  event.payload_hash = digest_of(event.frame.payload);
  event.sender = key_of_node(message.from);
  event.reply = next_reply_++;
  const core::Frame& frame = event.frame;
  const bool forward = frame.direction == core::Direction::kForward;
  callers_[event.reply] = {message.from,
                           message.from_generation,
                           message.id,
                           {frame.microbatch, frame.attempt},
                           forward};
  world_.trace.line("frame {} > {} {} {} {}", message.from, node_, forward ? 'f' : 'b',
                    frame.microbatch, frame.attempt);
  step(std::move(event));
}

void SimulatedMiner::refuse(World& world, const Message& message) {
  Message answer{.from = message.to,
                 .to = message.from,
                 .from_generation = 0,
                 .to_generation = message.from_generation,
                 .id = message.id,
                 .bytes = 0,
                 .body = core::Admission::kUnreachable};
  if (std::holds_alternative<core::Registration>(message.body)) {
    answer.body = StatusOr<core::RegisterAnswer>(unavailable("connection refused"));
  } else if (std::holds_alternative<core::SyncRequest>(message.body)) {
    answer.body = StatusOr<core::SyncAnswer>(unavailable("connection refused"));
  }
  world.send(std::move(answer));
}

void SimulatedMiner::step(core::MinerEvent event) {
  control_->step(world_.queue.now_ms(), std::move(event));
}

void SimulatedMiner::on_call_answered(uint64_t call) { call_ = 0; }

void SimulatedMiner::register_miner(const core::Registration& registration) {
  call_ = next_call_++;
  call_is_registration_ = true;
  world_.send({.from = node_,
               .to = kOrchestratorNode,
               .from_generation = generation_,
               .to_generation = 0,
               .id = call_,
               .bytes = 0,
               .body = registration});
  world_.queue.push(world_.queue.now_us() + kCallTimeoutUs, EventKind::kCallTimeout, node_,
                    generation_, call_);
}

void SimulatedMiner::sync(core::SyncRequest request) {
  call_ = next_call_++;
  call_is_registration_ = false;
  world_.send({.from = node_,
               .to = kOrchestratorNode,
               .from_generation = generation_,
               .to_generation = 0,
               .id = call_,
               .session = session_,
               .bytes = 0,
               .body = std::move(request)});
  world_.queue.push(world_.queue.now_us() + kCallTimeoutUs, EventKind::kCallTimeout, node_,
                    generation_, call_);
}

void SimulatedMiner::reply(const core::miner_effect::ReplyAdmission& effect) {
  const auto entry = callers_.extract(effect.reply);
  if (entry.empty()) return;
  const Caller& caller = entry.mapped();
  if (caller.forward && effect.admission == core::Admission::kAccepted) held_.insert(caller.key);
  world_.send({.from = node_,
               .to = caller.node,
               .from_generation = generation_,
               .to_generation = caller.generation,
               .id = caller.send,
               .bytes = 0,
               .body = effect.admission});
}

void SimulatedMiner::send(core::miner_effect::SendFrame effect) {
  sends_.insert(effect.send);
  world_.queue.push(world_.queue.now_us() + us_of_ms(effect.timeout_ms), EventKind::kSendTimeout,
                    node_, generation_, effect.send);
  world_.send({.from = node_,
               .to = node_of_key(effect.peer.node),
               .from_generation = generation_,
               .to_generation = 0,
               .id = effect.send,
               .bytes = 0,
               .body = std::move(effect.frame)});
}

void SimulatedMiner::read_tokens(core::MicrobatchKey key) {
  held_.insert(key);
  reads_[next_read_] = key;
  world_.queue.push(world_.queue.now_us() + kReadTokensUs, EventKind::kTokensRead, node_,
                    generation_, next_read_++);
}

}  // namespace tessera::sim
