// A microbatch's way through a miner.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr TimeMs kSuspendMs = 2000;       // a peer that did not answer
constexpr TimeMs kRetryMs = 50;           // when every peer refused
constexpr size_t kCapacity = 64;          // microbatches held; a forward over it is refused
constexpr size_t kRemembered = 65536;     // accumulated microbatches
constexpr float kAverageWeight = 0.1f;

float moving_average(float average, float value) {
  return average == 0 ? value : average + kAverageWeight * (value - average);
}

}  // namespace

void Miner::take_leases(const SyncAnswer& answer) {
  if (answer.lease_request != lease_request_) return;  // an answer to an older request: taken already
  if (answer.leases.empty()) return;
  ++lease_request_;
  for (const Lease& lease : answer.leases) {
    const MicrobatchKey key{lease.microbatch, lease.attempt};
    if (works_.count(key) > 0 || lease.pathway.size() != spec_.pipeline.stages) continue;
    // An older attempt of the same microbatch is fenced off.
    for (auto it = works_.begin(); it != works_.end();) {
      const MicrobatchKey old = (it++)->first;
      if (old.microbatch == key.microbatch) drop(old, "a newer attempt began");
    }
    Work work;
    work.counted_stages = lease.counted_stages;
    work.pathway = lease.pathway;
    work.deadline = now_ + lease.lifetime_ms;
    works_.emplace(key, std::move(work));
    emit(miner_effect::ReadTokens{key});
  }
}

void Miner::on(miner_event::TokensRead& event) {
  const auto found = works_.find(event.key);
  if (found == works_.end() || found->second.state != WorkState::kReadingTokens) return;
  if (!event.ok) {
    drop(event.key, event.why);
    return;
  }
  found->second.tokens = std::make_shared<const std::vector<uint32_t>>(std::move(event.tokens));
  found->second.state = WorkState::kForwardQueued;
  forward_queue_.push_back(event.key);
}

void Miner::on(miner_event::FrameArrived& event) {
  const Admission admission =
      event.frame.direction == Direction::kForward ? admit_forward(event) : admit_backward(event);
  if (admission != Admission::kAccepted && admission != Admission::kDuplicate) status_.frames_refused++;
  emit(miner_effect::ReplyAdmission{event.reply, admission});
}

Admission Miner::admit_forward(miner_event::FrameArrived& event) {
  Frame& frame = event.frame;
  if (phase_ != MinerPhase::kReady) return Admission::kNotReady;
  if (frame.boundary + 1u != assignment_->stage) return Admission::kWrongStage;
  const auto sender = std::find_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
    return entry.second.peer.node == event.sender && entry.second.peer.stage == frame.boundary;
  });
  if (sender == peers_.end()) return Admission::kNotReady;  // the table is old, or the sender has no place in this run
  const MicrobatchKey key{frame.microbatch, frame.attempt};
  for (auto it = works_.lower_bound({frame.microbatch, 0}); it != works_.end() && it->first.microbatch == frame.microbatch;) {
    const MicrobatchKey held = (it++)->first;
    if (held.attempt > key.attempt) return Admission::kStaleAttempt;
    if (held.attempt == key.attempt) return Admission::kDuplicate;
    drop(held, "a newer attempt began");
  }
  if (works_.size() >= kCapacity) return Admission::kFull;
  Work work;
  work.state = WorkState::kForwardQueued;
  work.counted_stages = frame.counted_stages;
  work.pathway = std::move(frame.pathway);
  work.deadline = now_ + std::min(frame.lifetime_ms, spec_.timeouts.lease_ms);
  work.upstream = sender->first;
  work.tokens = std::make_shared<const std::vector<uint32_t>>(std::move(frame.tokens));
  work.payload = {frame.exponent, std::move(frame.payload)};
  work.receipt.input_hash = event.payload_hash;
  works_.emplace(key, std::move(work));
  forward_queue_.push_back(key);
  return Admission::kAccepted;
}

Admission Miner::admit_backward(miner_event::FrameArrived& event) {
  Frame& frame = event.frame;
  if (!assignment_ || frame.boundary != assignment_->stage) return Admission::kWrongStage;
  const MicrobatchKey key{frame.microbatch, frame.attempt};
  const auto found = works_.find(key);
  if (found == works_.end()) return Admission::kUnknownMicrobatch;
  Work& work = found->second;
  const auto sender = peers_.find(work.downstream);
  if (sender == peers_.end() || sender->second.peer.node != event.sender) return Admission::kUnknownMicrobatch;
  // The gradient may overtake the answer to the forward frame.
  if (work.state != WorkState::kSending && work.state != WorkState::kAwaitingGradient) return Admission::kDuplicate;
  if (work.state == WorkState::kSending) sends_.erase(work.send);
  if (sender->second.outstanding > 0) sender->second.outstanding--;
  work.state = WorkState::kBackwardQueued;
  work.payload = {frame.exponent, std::move(frame.payload)};
  work.receipt.gradient_in_hash = event.payload_hash;
  backward_queue_.push_back(key);
  return Admission::kAccepted;
}

// Hands the compute thread its next job when it is idle.
void Miner::schedule() {
  while (!computing_) {
    if (step_due_) {
      step_due_ = false;
      computing_ = true;
      emit(ComputeJob(miner_effect::OptimizerStep{learning_rate_at(spec_.training, schedule_step_)}));
    } else if (!control_queue_.empty()) {
      const bool answers = !std::holds_alternative<miner_effect::Discard>(control_queue_.front());
      computing_ = answers;
      emit(std::move(control_queue_.front()));
      control_queue_.pop_front();
    } else if (!backward_queue_.empty()) {
      const MicrobatchKey key = backward_queue_.front();
      backward_queue_.pop_front();
      Work& work = works_.at(key);
      work.state = WorkState::kBackwarding;
      const bool counted = (work.counted_stages >> assignment_->stage & 1) != 0;
      work.accumulate = !counted && accumulated_set_.count(key.microbatch) == 0;
      computing_ = true;
      emit(ComputeJob(miner_effect::Backward{key, std::move(work.payload), work.accumulate}));
    } else if (!forward_queue_.empty()) {
      const MicrobatchKey key = forward_queue_.front();
      forward_queue_.pop_front();
      Work& work = works_.at(key);
      work.state = WorkState::kForwarding;
      computing_ = true;
      emit(ComputeJob(miner_effect::Forward{key, work.tokens, std::move(work.payload)}));
    } else {
      return;
    }
  }
}

void Miner::on(miner_event::ForwardDone& event) {
  computing_ = false;
  status_.forward_ms = moving_average(status_.forward_ms, event.milliseconds);
  const auto found = works_.find(event.key);
  if (found == works_.end()) {  // dropped meanwhile
    control_queue_.push_back(miner_effect::Discard{event.key});
    return;
  }
  Work& work = found->second;
  work.payload = std::move(event.output);
  work.receipt.output_hash = event.output_hash;
  work.receipt.weight_version = event.weight_version;
  work.receipt.forward_ms = event.milliseconds;
  work.receipt.loss = static_cast<float>(event.loss);
  if (is_tail()) {
    work.payload = {};
    work.state = WorkState::kBackwardQueued;
    backward_queue_.push_back(event.key);
  } else {
    work.state = WorkState::kSending;
    send_onward(event.key, work);
  }
}

MinerIndex Miner::choose_downstream(const Work& work) const {
  const StageIndex next = assignment_->stage + 1;
  const auto usable = [&](const PeerState& state) {
    return state.peer.stage == next && state.peer.live && state.suspended_until <= now_ &&
           work.tried.count(state.peer.miner) == 0;
  };
  if (next < work.pathway.size()) {
    const auto proposed = peers_.find(work.pathway[next]);
    if (proposed != peers_.end() && usable(proposed->second)) return proposed->first;
  }
  MinerIndex best = kNoMiner;
  uint32_t fewest = UINT32_MAX;
  for (const auto& [index, state] : peers_) {
    if (!usable(state) || state.outstanding >= fewest) continue;
    best = index;
    fewest = state.outstanding;
  }
  return best;
}

Frame Miner::frame_of(const MicrobatchKey& key, const Work& work, Direction direction) const {
  Frame frame;
  frame.run = run_tag();
  frame.epoch = epoch_;
  frame.microbatch = key.microbatch;
  frame.attempt = key.attempt;
  frame.direction = direction;
  frame.kind = spec_.boundary.kind;
  frame.codec = spec_.boundary.codec;
  frame.batch = spec_.training.microbatch_size;
  frame.context = spec_.model.context;
  frame.rank = spec_.boundary.rank;
  frame.exponent = work.payload.exponent;
  frame.payload = work.payload.bytes;
  frame.counted_stages = work.counted_stages;
  frame.lifetime_ms = static_cast<uint32_t>(std::max<TimeMs>(0, work.deadline - now_));
  if (direction == Direction::kForward) {
    frame.boundary = static_cast<uint16_t>(assignment_->stage);
    frame.pathway = work.pathway;
    frame.tokens = *work.tokens;
  } else {
    frame.boundary = static_cast<uint16_t>(assignment_->stage - 1);
  }
  return frame;
}

void Miner::send_onward(const MicrobatchKey& key, Work& work) {
  const MinerIndex to = choose_downstream(work);
  if (to == kNoMiner) {
    work.tried.clear();
    work.retry_at = now_ + kRetryMs;
    return;
  }
  work.retry_at = 0;
  work.downstream = to;
  work.send = next_send_++;
  sends_[work.send] = key;
  PeerState& peer = peers_.at(to);
  peer.outstanding++;
  emit(miner_effect::SendFrame{work.send, peer.peer, frame_of(key, work, Direction::kForward), spec_.timeouts.peer_ms});
}

void Miner::send_back(const MicrobatchKey& key, Work& work) {
  const auto peer = peers_.find(work.upstream);
  if (peer == peers_.end()) {
    drop(key, "its upstream miner left the run");
    return;
  }
  work.retry_at = 0;
  work.send = next_send_++;
  sends_[work.send] = key;
  emit(miner_effect::SendFrame{work.send, peer->second.peer, frame_of(key, work, Direction::kBackward),
                               spec_.timeouts.peer_ms});
}

void Miner::on(miner_event::FrameAnswered& event) {
  const auto sent = sends_.find(event.send);
  if (sent == sends_.end()) return;  // its microbatch is over
  const MicrobatchKey key = sent->second;
  sends_.erase(sent);
  const auto found = works_.find(key);
  if (found == works_.end() || found->second.send != event.send) return;
  Work& work = found->second;
  const bool taken = event.admission == Admission::kAccepted || event.admission == Admission::kDuplicate;
  if (taken && work.state == WorkState::kSending) {
    work.state = WorkState::kAwaitingGradient;
    status_.boundary_tensors_sent++;
    return;
  }
  if (work.state == WorkState::kReturning) {
    if (taken) {
      status_.boundary_tensors_sent++;
      finish(key);
    } else if (event.admission == Admission::kUnreachable) {
      work.retry_at = now_ + 4 * kRetryMs;
    } else {
      // Upstream no longer wants it: this stage's gradient counts all the same.
      say(fmt::format("microbatch {}: upstream answered '{}' to its gradient", key.microbatch, name_of(event.admission)));
      finish(key);
    }
    return;
  }
  if (work.state != WorkState::kSending) return;
  const auto peer = peers_.find(work.downstream);
  if (peer != peers_.end() && peer->second.outstanding > 0) peer->second.outstanding--;
  switch (event.admission) {
    case Admission::kStaleAttempt:
    case Admission::kWrongRun:
    case Admission::kWrongShape:
    case Admission::kCorrupt:
      drop(key, fmt::format("downstream answered '{}'", name_of(event.admission)));
      return;
    case Admission::kUnreachable:
      if (peer != peers_.end()) {
        peer->second.suspended_until = now_ + kSuspendMs;
        say(fmt::format("miner {} does not answer; left out for {} ms", work.downstream, kSuspendMs), true);
      }
      break;
    default:
      break;
  }
  work.tried.insert(work.downstream);
  send_onward(key, work);
}

void Miner::on(miner_event::BackwardDone& event) {
  computing_ = false;
  status_.backward_ms = moving_average(status_.backward_ms, event.milliseconds);
  const auto found = works_.find(event.key);
  // The gradient is in the accumulator whether or not the microbatch is still wanted, so the receipt is written anyway;
  // drop() leaves a microbatch that is being computed to us.
  if (found == works_.end()) return;
  Work& work = found->second;
  Receipt receipt = work.receipt;
  receipt.sequence = next_receipt_++;
  receipt.incarnation = identity_.incarnation;
  receipt.miner = identity_.index;
  receipt.stage = assignment_->stage;
  receipt.microbatch = event.key.microbatch;
  receipt.attempt = event.key.attempt;
  receipt.upstream = work.upstream;
  receipt.downstream = work.downstream;
  receipt.epoch = epoch_;
  receipt.accumulated = work.accumulate;
  receipt.local_step = local_steps_;
  receipt.order = accumulated_;
  receipt.gradient_out_hash = event.gradient_hash;
  receipt.backward_ms = event.milliseconds;
  receipt.unix_ms = now_;
  receipt.signature = identity_.sign(receipt.signed_bytes(identity_.run_id));
  receipts_.push_back(receipt);
  if (work.accumulate) {
    accumulated_++;
    accumulated_set_.insert(event.key.microbatch);
    accumulated_ids_.push_back(event.key.microbatch);
    if (accumulated_ids_.size() > kRemembered) {
      accumulated_set_.erase(accumulated_ids_.front());
      accumulated_ids_.pop_front();
    }
    step_due_ = accumulated_ >= spec_.training.microbatches_per_step;
  }
  if (is_head()) {
    finish(event.key);
  } else {
    work.payload = std::move(event.input_gradient);
    work.state = WorkState::kReturning;
    send_back(event.key, work);
  }
}

void Miner::on(miner_event::StepDone& event) {
  computing_ = false;
  if (event.ok) {
    weight_version_ = event.weight_version;
    status_.gradient_norm = static_cast<float>(event.gradient_norm);
  } else {
    say(fmt::format("optimizer step {} skipped: {}", local_steps_, event.why), true);
  }
  accumulated_ = 0;
  local_steps_++;
  schedule_step_++;
}

void Miner::on(miner_event::ComputeFailed& event) {
  computing_ = false;
  if (const auto found = works_.find(event.key); found != works_.end()) {
    found->second.state = WorkState::kAwaitingGradient;  // nothing is computing it any more
    drop(event.key, event.why);
  }
}

void Miner::finish(const MicrobatchKey& key) {
  works_.erase(key);
  if (is_head()) urgent_ = true;
}

// Forgets a microbatch and what the engine holds of it. One that is being computed goes when its answer comes.
void Miner::drop(const MicrobatchKey& key, const std::string& reason) {
  const auto found = works_.find(key);
  if (found == works_.end()) return;
  Work& work = found->second;
  if (work.state == WorkState::kBackwarding) return;
  say(fmt::format("microbatch {} attempt {} dropped: {}", key.microbatch, key.attempt, reason), true);
  std::erase(forward_queue_, key);
  std::erase(backward_queue_, key);
  sends_.erase(work.send);
  const bool engine_holds = work.state == WorkState::kSending || work.state == WorkState::kAwaitingGradient ||
                            work.state == WorkState::kBackwardQueued;
  if (engine_holds) {
    control_queue_.push_back(miner_effect::Discard{key});
    const auto peer = peers_.find(work.downstream);
    if (peer != peers_.end() && peer->second.outstanding > 0 && work.state != WorkState::kBackwardQueued) {
      peer->second.outstanding--;
    }
  }
  finish(key);
}

void Miner::retry_and_expire() {
  std::vector<MicrobatchKey> expired;
  std::vector<MicrobatchKey> retries;
  for (const auto& [key, work] : works_) {
    if (now_ >= work.deadline) {
      expired.push_back(key);
    } else if (work.retry_at > 0 && now_ >= work.retry_at) {
      retries.push_back(key);
    }
  }
  for (const MicrobatchKey& key : expired) drop(key, "its lease is over");
  for (const MicrobatchKey& key : retries) {
    const auto found = works_.find(key);
    if (found == works_.end()) continue;
    if (found->second.state == WorkState::kSending) send_onward(key, found->second);
    if (found->second.state == WorkState::kReturning) send_back(key, found->second);
  }
}

}  // namespace tessera::core
