// Frames to peers: who gets one, and what becomes of one that was not taken or whose gradient does
// not come.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr TimeMs kRetryMs = 50;             // when every peer refused
constexpr TimeMs kAdmissionFloorMs = 1000;  // least time that a peer has to take a frame
constexpr uint8_t kMostAsked = 2;           // for an overdue gradient, before another peer gets the work

}  // namespace

MinerIndex Miner::choose_downstream(const Work& work) {
  const StageIndex next = assignment_->stage + 1;
  const auto usable = [&](const PeerState& state) {
    return state.peer.stage == next && is_usable(state) && work.tried.count(state.peer.miner) == 0;
  };
  const auto candidate_of = [](const PeerState& state) {
    return RouteCandidate{state.peer.miner, static_cast<double>(state.health.microbatch_ms),
                          static_cast<double>(state.health.queued + state.given_since)};
  };
  const auto proposed = next < work.lease.pathway.size() ? peers_.find(work.lease.pathway[next]) : peers_.end();
  const bool may_bind = proposed != peers_.end() && usable(proposed->second);
  std::optional<RouteCandidate> proposal;
  if (may_bind) proposal = candidate_of(proposed->second);
  // Of what was repaired on the way here the proposed one has most likely done its part.
  const bool repaired = std::any_of(work.repairs.begin(), work.repairs.end(), [](uint8_t count) { return count > 0; });
  if (proposal && (repaired || proposal->microbatch_ms <= 0 || proposal->backlog <= 0)) {
    router_.charge(*proposal);
    return proposal->miner;
  }
  std::vector<RouteCandidate> candidates;
  for (const auto& [index, state] : peers_) {
    if (usable(state)) candidates.push_back(candidate_of(state));
  }
  if (proposal && !Router::is_far_behind(*proposal, candidates)) {
    router_.charge(*proposal);
    return proposal->miner;
  }
  return router_.pick(candidates);
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
  frame.counted_stages = work.lease.counted_stages;
  frame.lifetime_ms = static_cast<uint32_t>(std::max<TimeMs>(0, work.deadline - now_));
  if (direction == Direction::kForward) {
    frame.boundary = static_cast<uint16_t>(assignment_->stage);
    frame.pathway = work.lease.pathway;
    frame.lease_expires_unix_ms = work.lease.expires_unix_ms;
    frame.lease_signature = work.lease.signature;
    frame.repairs = work.repairs;
    frame.repairs.push_back(work.given_again);
    frame.tokens = *work.tokens;
  } else {
    frame.boundary = static_cast<uint16_t>(assignment_->stage - 1);
  }
  return frame;
}

void Miner::release_downstream(Work& work) {
  if (!work.outstanding) return;
  work.outstanding = false;
  const auto peer = peers_.find(work.downstream);
  if (peer != peers_.end() && peer->second.outstanding > 0) peer->second.outstanding--;
}

// A frame of the work goes out.
void Miner::sent(const MicrobatchKey& key, Work& work, TimeMs timeout) {
  work.retry_at = 0;
  work.waits_to_be_sent = false;
  work.send = next_send_++;
  work.sent_at = now_;
  sends_[work.send] = key;
  window_.sent(work.send, now_, timeout);
}

void Miner::abandon_send(const Work& work) {
  sends_.erase(work.send);
  window_.abandoned(work.send);
}

void Miner::wait_to_be_sent(const MicrobatchKey& key, Work& work) {
  work.retry_at = 0;
  if (work.waits_to_be_sent) return;
  work.waits_to_be_sent = true;
  (work.state == WorkState::kReturning ? unsent_backwards_ : unsent_forwards_).push_back(key);
}

void Miner::send_waiting() {
  for (std::deque<MicrobatchKey>* queue : {&unsent_backwards_, &unsent_forwards_}) {
    while (!queue->empty() && window_.open()) {
      const MicrobatchKey key = queue->front();
      queue->pop_front();
      const auto found = works_.find(key);
      if (found == works_.end() || !found->second.waits_to_be_sent) continue;
      found->second.waits_to_be_sent = false;
      if (found->second.state == WorkState::kSending) {
        send_onward(key, found->second);
      } else if (found->second.state == WorkState::kReturning) {
        send_back(key, found->second);
      }
    }
  }
}

void Miner::send_onward(const MicrobatchKey& key, Work& work) {
  if (!window_.open()) return wait_to_be_sent(key, work);
  const MinerIndex to = choose_downstream(work);
  if (to == kNoMiner) {
    work.tried.clear();
    work.retry_at = now_ + kRetryMs;
    return;
  }
  send_forward_to(to, key, work);
}

void Miner::send_forward_to(MinerIndex to, const MicrobatchKey& key, Work& work) {
  release_downstream(work);
  const auto found = peers_.find(to);
  if (found == peers_.end()) return send_onward(key, work);  // it left the run
  PeerState& peer = found->second;
  work.state = WorkState::kSending;
  work.downstream = to;
  work.sent_as = work.repairs;
  work.outstanding = true;
  peer.outstanding++;
  peer.given_since++;
  // What is under way to anybody leaves by the same link before it.
  const TimeMs most = spec_.timeouts.peer_ms;
  const TimeMs before = static_cast<TimeMs>(window_.under_way()) * peer.admissions.median();
  const TimeMs least = std::max(kAdmissionFloorMs, window_.patience());
  const auto timeout =
      static_cast<uint32_t>(std::min(peer.admissions.deadline(least, most) + before, most));
  sent(key, work, timeout);
  emit(miner_effect::SendFrame{work.send, peer.peer, frame_of(key, work, Direction::kForward),
                               timeout});
  ask_health(peer);
}

void Miner::send_back(const MicrobatchKey& key, Work& work) {
  const auto peer = peers_.find(work.upstream);
  // One that is gone may be replaced: the replacement asks for the gradient.
  if (peer == peers_.end() || !peer->second.suspended.empty()) {
    work.retry_at = now_ + 4 * kRetryMs;
    return;
  }
  if (!window_.open()) return wait_to_be_sent(key, work);
  sent(key, work, spec_.timeouts.peer_ms);
  emit(miner_effect::SendFrame{work.send, peer->second.peer,
                               frame_of(key, work, Direction::kBackward), spec_.timeouts.peer_ms});
}

void Miner::on(miner_event::FrameAnswered& event) {
  window_.answered(event.send, now_, event.admission != Admission::kUnreachable);
  const auto sent = sends_.find(event.send);
  if (sent == sends_.end()) return;  // its microbatch is over
  const MicrobatchKey key = sent->second;
  sends_.erase(sent);
  const auto found = works_.find(key);
  if (found == works_.end() || found->second.send != event.send) return;
  Work& work = found->second;
  if (event.admission == Admission::kUnreachable && work.sent_at < woke_at_) {
    // It was this process that did not listen.
    if (work.state == WorkState::kSending && peers_.count(work.downstream) > 0) {
      send_forward_to(work.downstream, key, work);
    } else {
      work.retry_at = now_;
    }
  } else if (work.state == WorkState::kReturning) {
    gradient_answered(key, work, event.admission);
  } else if (work.state == WorkState::kSending) {
    forward_answered(key, work, event.admission);
  }
}

void Miner::gradient_answered(const MicrobatchKey& key, Work& work, Admission admission) {
  const auto peer = peers_.find(work.upstream);
  if (peer != peers_.end() && admission != Admission::kUnreachable) heard(peer->second);
  switch (admission) {
    case Admission::kAccepted:
    case Admission::kDuplicate:
      status_.boundary_tensors_sent++;
      break;
    case Admission::kUnreachable:
      // One that was heard meanwhile is there: it is the link that is slow.
      if (peer != peers_.end() && peer->second.heard_at <= work.sent_at) {
        suspend(peer->second, "it did not answer to a gradient in time");
      }
      work.retry_at = now_ + 4 * kRetryMs;
      return;
    case Admission::kFull:
    case Admission::kNotReady:
      work.retry_at = now_ + 4 * kRetryMs;
      return;
    case Admission::kUnknownMicrobatch:
      // Another process is in its place; whoever goes on with what it held will ask.
      break;
    default:
      // Upstream no longer wants it: this stage's gradient counts all the same.
      say(fmt::format("microbatch {}: upstream answered '{}' to its gradient", key.microbatch,
                      name_of(admission)));
      work.deadline = now_;  // and nobody will ask for it
      break;
  }
  if (work.backward_running) {
    work.state = WorkState::kReturned;
    return;
  }
  keep_gradient(key, work);
  finish(key);
}

void Miner::forward_answered(const MicrobatchKey& key, Work& work, Admission admission) {
  const auto peer = peers_.find(work.downstream);
  if (peer != peers_.end() && admission != Admission::kUnreachable) heard(peer->second);
  switch (admission) {
    case Admission::kAccepted:
    case Admission::kDuplicate: {
      work.state = WorkState::kAwaitingGradient;
      if (admission == Admission::kAccepted || work.asked_again == 0) work.accepted_at = now_;
      status_.boundary_tensors_sent++;
      // The further from the tail, the more can be repaired in front of it meanwhile.
      const TimeMs floor =
          TimeMs{spec_.timeouts.peer_ms} * (spec_.pipeline.stages - 1 - assignment_->stage);
      TimeMs patience = spec_.timeouts.lease_ms;
      if (peer != peers_.end()) {
        peer->second.admissions.add(now_ - work.sent_at);
        patience = peer->second.gradients.deadline(floor, patience);
      }
      // One that has it and answers is busy: another one would only do its work again.
      work.gradient_due = now_ + std::min<TimeMs>(patience << work.asked_again, spec_.timeouts.lease_ms);
      return;
    }
    case Admission::kTakenOver:
      // That was before it was given back to this miner.
      if (work.sent_as < work.repairs) {
        send_forward_to(work.downstream, key, work);
        return;
      }
      [[fallthrough]];
    case Admission::kStaleAttempt:
    case Admission::kNotLeased:
    case Admission::kWrongRun:
    case Admission::kWrongShape:
    case Admission::kCorrupt:
      drop(key, fmt::format("downstream answered '{}'", name_of(admission)));
      return;
    case Admission::kUnreachable: {
      const MinerIndex silent = work.downstream;
      if (peer != peers_.end() && peer->second.heard_at <= work.sent_at) {
        suspend(peer->second, "it did not answer to a frame in time");
      }
      // suspend() gives away what it holds, this too.
      if (work.state == WorkState::kSending && work.downstream == silent && work.send != 0 &&
          work.outstanding) {
        give_again(key, work);
      }
      return;
    }
    default:
      release_downstream(work);
      work.tried.insert(work.downstream);
      send_onward(key, work);
      return;
  }
}

// To another miner of the next stage: the one that has it is gone, or may never have got it.
void Miner::give_again(const MicrobatchKey& key, Work& work) {
  abandon_send(work);
  release_downstream(work);
  work.tried = {work.downstream};
  if (work.given_again < UINT8_MAX) work.given_again++;
  work.asked_again = 0;
  work.state = WorkState::kSending;
  send_onward(key, work);
}

// A gradient that is overdue at a peer that answers: it is offered the microbatch again, and waited for
// twice as long. That costs one frame if it has it (DUPLICATE), and mends it if it has dropped it.
// The third time another miner gets it.
void Miner::ask_overdue() {
  std::vector<MicrobatchKey> overdue;
  for (const auto& [key, work] : works_) {
    if (work.state == WorkState::kAwaitingGradient && now_ >= work.gradient_due)
      overdue.push_back(key);
  }
  for (const MicrobatchKey& key : overdue) {
    if (!window_.open()) return;  // it may be this miner's own link that is slow: later
    Work& work = works_.at(key);
    const auto peer = peers_.find(work.downstream);
    const bool ask = work.asked_again < kMostAsked && peer != peers_.end() && is_usable(peer->second);
    say(fmt::format("microbatch {}: its gradient is overdue at miner {}, {}", key.microbatch,
                    work.downstream, ask ? "which is asked again" : "so another one gets it"),
        true);
    if (ask) {
      work.asked_again++;
      send_forward_to(work.downstream, key, work);
    } else {
      give_again(key, work);
    }
  }
}

}  // namespace tessera::core
