// Frames from and to peers: what is let in, where it goes, and what becomes of one that was not taken.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr TimeMs kSuspendMs = 2000;  // a peer that did not answer
constexpr TimeMs kRetryMs = 50;      // when every peer refused
constexpr size_t kCapacity = 64;     // microbatches held; a forward over it is refused

}  // namespace

PeerHealth Miner::health() const {
  PeerHealth health;
  health.queued = static_cast<uint32_t>(forward_queue_.size() + backward_queue_.size());
  if (phase_ == MinerPhase::kReady && works_.size() < kCapacity) {
    health.capacity = static_cast<uint32_t>(kCapacity - works_.size());
  }
  health.microbatch_ms = status_.forward_ms + status_.backward_ms;
  return health;
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
  Epoch& newest = sender->second.newest_epoch;
  if (newest > spec_.merge.max_staleness && frame.epoch < newest - spec_.merge.max_staleness) return Admission::kStaleEpoch;
  newest = std::max(newest, frame.epoch);
  const MicrobatchKey key{frame.microbatch, frame.attempt};
  if (const auto refusal = meet_held(key, sender->first)) return *refusal;
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

// What is held of the microbatch already decides: a newer attempt wins, and within an attempt the newer route.
std::optional<Admission> Miner::meet_held(const MicrobatchKey& key, MinerIndex sender) {
  for (auto it = works_.lower_bound({key.microbatch, 0}); it != works_.end() && it->first.microbatch == key.microbatch;) {
    const MicrobatchKey held = it->first;
    Work& work = (it++)->second;
    if (held.attempt > key.attempt) return Admission::kStaleAttempt;
    if (held.attempt < key.attempt) {
      drop(held, "a newer attempt began");
    } else if (work.upstream == sender) {
      return Admission::kDuplicate;
    } else if (work.state == WorkState::kBackwarding || work.state == WorkState::kReturning) {
      // The miner it came from was replaced upstream after this stage was done: the replacement gets the gradient.
      work.upstream = sender;
      if (work.state == WorkState::kReturning) {
        sends_.erase(work.send);
        send_back(key, work);
      }
      return Admission::kDuplicate;
    } else {
      drop(held, "it comes from another miner now");
    }
  }
  return std::nullopt;
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
  if (work.state == WorkState::kSending) {
    sends_.erase(work.send);
    work.retry_at = 0;
    status_.boundary_tensors_sent++;
  }
  if (sender->second.outstanding > 0) sender->second.outstanding--;
  work.state = WorkState::kBackwardQueued;
  work.payload = {frame.exponent, std::move(frame.payload)};
  work.receipt.gradient_in_hash = event.payload_hash;
  backward_queue_.push_back(key);
  return Admission::kAccepted;
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
    } else if (event.admission == Admission::kUnreachable || event.admission == Admission::kFull ||
               event.admission == Admission::kNotReady) {
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

}  // namespace tessera::core
