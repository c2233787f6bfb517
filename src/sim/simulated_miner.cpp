// Life and death of a miner's processes. Their messages are in simulated_links.cpp, their work in simulated_work.cpp.
#include "simulated_miner.h"

#include <algorithm>

namespace tessera::sim {

SimulatedMiner::SimulatedMiner(World& world, uint32_t node, MinerProfile profile)
    : world_(world), node_(node), key_(key_of_node(node)), profile_(profile),
      cheat_(node <= world.sim.cheaters.size() ? world.sim.cheaters[node - 1] : "") {}

void SimulatedMiner::start() {
  TESSERA_CHECK(!control_);
  ++generation_;
  node::MinerControlOptions options;
  options.registration.node = key_;
  options.registration.incarnation = incarnation_ = world_.random.next() | 1;
  options.registration.address = fmt::format("node-{}:1", node_);
  options.registration.device = "simulated";
  options.registration.memory_bytes = profile_.memory_bytes;
  options.registration.wanted_stage = profile_.wanted_stage;
  options.verify = is_signed_by;
  options.unix_offset_ms = kUnixEpochMs;
  options.sign = [this](std::string_view bytes) { return sign_as(key_, bytes); };
  options.tick_ms = std::max<TimeMs>(1, static_cast<TimeMs>(world_.sim.tick_ms));
  options.random = [this] { return world_.random.next() | 1; };
  drained_restart_us_ = 0;
  frozen_until_us_ = 0;
  comes_back_ = true;
  callers_.clear();
  connected_.clear();
  forget_work();
  control_ = std::make_unique<node::MinerControl>(std::move(options), *this);
  world_.trace.line("start {} {}", node_, generation_);
  world_.measures.process_began(node_, generation_);
  after_event();
}

void SimulatedMiner::forget_work() {
  session_.clear();
  call_ = 0;
  wake_us_ = kNever;
  sends_.clear();
  probes_.clear();
  reads_.clear();
  held_.clear();
  compute_queue_.clear();
  compute_until_us_ = kNever;
  background_queue_.clear();
  background_until_us_ = kNever;
  background_events_.clear();
}

// The process goes on, and all that was under way in it ends: events of before find another generation.
void SimulatedMiner::end_incarnation() {
  world_.trace.line("again {} {}", node_, generation_);
  world_.measures.process_ended(node_);
  refuse_callers(core::Admission::kNotReady);
  forget_work();
  ended_compute_ = std::move(compute_);
  ended_background_ = std::move(background_);
  ++generation_;
  world_.measures.process_began(node_, generation_);
}

void SimulatedMiner::refuse_callers(core::Admission why) {
  for (const auto& [reply, caller] : callers_) {
    world_.send({.from = node_,
                 .to = caller.node,
                 .from_generation = generation_,
                 .to_generation = caller.generation,
                 .id = caller.send,
                 .bytes = 0,
                 .body = why});
  }
  callers_.clear();
}

// The process is gone. Whoever waits for it or is connected to it hears it from the system.
void SimulatedMiner::end(TimeUs restart_us) {
  control_.reset();
  compute_.reset();
  background_.reset();
  blobs_.reset();
  frozen_until_us_ = 0;
  world_.measures.process_ended(node_);
  note_capacity();
  refuse_callers(core::Admission::kUnreachable);
  for (const auto& [peer, generation] : connected_) {
    world_.send({.from = node_,
                 .to = peer,
                 .from_generation = generation_,
                 .to_generation = generation,
                 .bytes = 0,
                 .body = ConnectionBroken{}});
  }
  connected_.clear();
  comes_back_ = restart_us != kNever;
  if (comes_back_) world_.queue.push(restart_us, EventKind::kStart, node_, generation_);
}

void SimulatedMiner::kill(TimeUs restart_us) {
  world_.trace.line("kill {} {}", node_, generation_);
  if (stage_) world_.measures.struck(config::FaultKind::kKill, node_, *stage_, held_);
  end(restart_us);
}

void SimulatedMiner::freeze(TimeUs until_us) {
  world_.trace.line("freeze {} {}", node_, until_us - kBeginUs);
  if (stage_) world_.measures.struck(config::FaultKind::kFreeze, node_, *stage_, held_);
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
    if (alive() && stage_) world_.measures.struck(config::FaultKind::kPartition, node_, *stage_, held_);
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
  ended_compute_.reset();
  ended_background_.reset();
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
    case EventKind::kProbeTimeout:
      if (probes_.erase(event.value) == 0) return;
      step(core::miner_event::ProbeAnswered{event.value, false, {}});
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

}  // namespace tessera::sim
