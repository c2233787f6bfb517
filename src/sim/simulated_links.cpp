// A miner's messages in both directions.
#include "simulated_miner.h"
#include "tessera/core/payload_name.h"

namespace tessera::sim {
namespace {

constexpr TimeUs kCallTimeoutUs = 10000000;  // as the network's links have it
constexpr TimeUs kReadTokensUs = 1000;

}  // namespace

void SimulatedMiner::receive(Message message) {
  if (message.is_answer() && message.to_generation != generation_) return;
  if (std::holds_alternative<core::Frame>(message.body)) {
    on_frame(message);
  } else if (const auto* admission = std::get_if<core::Admission>(&message.body)) {
    if (sends_.erase(message.id) == 0) return;  // too late
    world_.trace.line("answer {} send {} {}", node_, message.id, core::name_of(*admission));
    step(core::miner_event::FrameAnswered{message.id, *admission});
  } else if (std::holds_alternative<ProbeRequest>(message.body)) {
    answer_probe(message);
  } else if (const auto* health = std::get_if<StatusOr<core::PeerHealth>>(&message.body)) {
    if (probes_.erase(message.id) == 0) return;
    const bool ok = health->ok();
    step(core::miner_event::ProbeAnswered{message.id, ok, ok ? **health : core::PeerHealth{}});
  } else if (std::holds_alternative<ConnectionBroken>(message.body)) {
    world_.trace.line("broken {} {}", node_, message.from);
    step(core::miner_event::PeerBroken{key_of_node(message.from)});
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

void SimulatedMiner::answer_probe(const Message& asked) {
  connected_[asked.from] = asked.from_generation;
  StatusOr<core::PeerHealth> health = failed_precondition("this miner has not joined a run yet");
  if (miner() != nullptr) health = miner()->health();
  world_.send({.from = node_,
               .to = asked.from,
               .from_generation = generation_,
               .to_generation = asked.from_generation,
               .id = asked.id,
               .bytes = 0,
               .body = std::move(health)});
}

void SimulatedMiner::on_frame(Message& message) {
  connected_[message.from] = message.from_generation;
  core::miner_event::FrameArrived event;
  event.frame = std::move(std::get<core::Frame>(message.body));
  event.payload_hash = core::name_of(core::BoundaryPayload{event.frame.exponent, event.frame.payload});
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
  } else if (std::holds_alternative<ProbeRequest>(message.body)) {
    answer.body = StatusOr<core::PeerHealth>(unavailable("connection refused"));
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
  incarnation_ = registration.incarnation;
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
  if (caller.forward && effect.admission == core::Admission::kAccepted) {
    held_.insert(caller.key);
    world_.measures.taken(node_, *stage_, caller.key.microbatch);
  }
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
  const TimeUs until = world_.queue.now_us() + us_of_ms(effect.timeout_ms);
  world_.queue.push(until, EventKind::kSendTimeout, node_, generation_, effect.send);
  world_.send({.from = node_,
               .to = node_of_key(effect.peer.node),
               .from_generation = generation_,
               .to_generation = 0,
               .id = effect.send,
               .bytes = 0,
               .until_us = until,
               .body = std::move(effect.frame)});
}

void SimulatedMiner::probe(const core::miner_effect::Probe& effect) {
  probes_.insert(effect.probe);
  world_.queue.push(world_.queue.now_us() + us_of_ms(effect.timeout_ms), EventKind::kProbeTimeout,
                    node_, generation_, effect.probe);
  world_.send({.from = node_,
               .to = node_of_key(effect.peer.node),
               .from_generation = generation_,
               .to_generation = 0,
               .id = effect.probe,
               .bytes = 0,
               .body = ProbeRequest{}});
}

void SimulatedMiner::read_tokens(core::MicrobatchKey key) {
  held_.insert(key);
  world_.measures.taken(node_, *stage_, key.microbatch);
  reads_[next_read_] = key;
  world_.queue.push(world_.queue.now_us() + kReadTokensUs, EventKind::kTokensRead, node_,
                    generation_, next_read_++);
}

}  // namespace tessera::sim
