// Frames from peers: what is let in, and how it meets what is held already.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/frame.h"
#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr size_t kCapacity = 64;                     // microbatches held; a forward over it is refused
constexpr size_t kMaxKept = 256;                     // gradients kept after they were handed on
constexpr size_t kMaxKeptBytes = size_t{256} << 20;
constexpr TimeMs kClockToleranceMs = 600000;         // between the orchestrator's clock and this one

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
  if (const auto known = peer_of_node_.find(event.sender); known != peer_of_node_.end()) heard(peers_.at(known->second));
  const Admission admission =
      event.frame.direction == Direction::kForward ? admit_forward(event) : admit_backward(event);
  if (admission != Admission::kAccepted && admission != Admission::kDuplicate) status_.frames_refused++;
  emit(miner_effect::ReplyAdmission{event.reply, admission});
}

Admission Miner::admit_forward(miner_event::FrameArrived& event) {
  Frame& frame = event.frame;
  if (!assignment_ || (phase_ != MinerPhase::kReady && phase_ != MinerPhase::kDraining)) return Admission::kNotReady;
  if (frame.boundary + 1u != assignment_->stage) return Admission::kWrongStage;
  const auto known = peer_of_node_.find(event.sender);
  // The table is old, or the sender has no place in this run.
  if (known == peer_of_node_.end() || peers_.at(known->second).peer.stage != frame.boundary) return Admission::kNotReady;
  const MinerIndex sender = known->second;
  Epoch& newest = peers_.at(sender).newest_epoch;
  if (newest > spec_.merge.max_staleness && frame.epoch < newest - spec_.merge.max_staleness) return Admission::kStaleEpoch;
  newest = std::max(newest, frame.epoch);
  const MicrobatchKey key{frame.microbatch, frame.attempt};
  frame.repairs.resize(assignment_->stage + 1);
  Lease lease = lease_of(frame);
  if (!is_leased(frame, lease)) return Admission::kNotLeased;
  if (const auto answer = meet_held(key, sender, frame, lease)) return *answer;
  if (phase_ == MinerPhase::kDraining) return Admission::kNotReady;  // nothing new
  if (works_.size() >= kCapacity) return Admission::kFull;
  if (frame.repairs.back() > 0) {
    say(fmt::format("microbatch {} attempt {}: taken from miner {} in place of another", key.microbatch, key.attempt, sender));
  }
  Work work;
  work.state = WorkState::kForwardQueued;
  work.lease = std::move(lease);
  work.repairs = std::move(frame.repairs);
  work.deadline = now_ + std::min(frame.lifetime_ms, spec_.timeouts.lease_ms);
  work.upstream = sender;
  work.tokens = std::make_shared<const std::vector<uint32_t>>(std::move(frame.tokens));
  work.payload = {frame.exponent, std::move(frame.payload)};
  work.receipt.input_hash = event.payload_hash;
  works_.emplace(key, std::move(work));
  forward_queue_.push_back(key);
  return Admission::kAccepted;
}

// A sender could invent a newer attempt, or another head, and so cancel what is held. The lease shows the orchestrator's
// signature over it; that of the lease that is held was looked at when it came.
bool Miner::is_leased(const Frame& frame, const Lease& lease) const {
  if (frame.repairs[0] > 1) return false;
  const auto held = works_.find({frame.microbatch, frame.attempt});
  const std::string content = lease.signed_bytes(identity_.run_id);
  if (held != works_.end() && held->second.lease.signature == lease.signature &&
      held->second.lease.signed_bytes(identity_.run_id) == content) {
    return true;
  }
  if (now_ + identity_.unix_offset_ms - kClockToleranceMs > lease.expires_unix_ms) return false;
  return identity_.verify(identity_.lease_key, content, lease.signature);
}

// What is held of the microbatch already decides: a newer attempt wins, and within an attempt the newer route.
std::optional<Admission> Miner::meet_held(const MicrobatchKey& key, MinerIndex sender, const Frame& frame,
                                          const Lease& lease) {
  for (auto it = works_.lower_bound({key.microbatch, 0}); it != works_.end() && it->first.microbatch == key.microbatch;) {
    const MicrobatchKey held = it->first;
    Work& work = (it++)->second;
    if (held.attempt > key.attempt) return Admission::kStaleAttempt;
    if (held.attempt == key.attempt) return adopt(key, work, sender, frame, lease);
    drop(held, "a newer attempt began");
  }
  return meet_kept(key, sender, frame.repairs);
}

// The same attempt comes again. A sender that was given the microbatch later than the one before replaces it: what is
// computed here serves the new one as well.
Admission Miner::adopt(const MicrobatchKey& key, Work& work, MinerIndex sender, const Frame& frame, const Lease& lease) {
  if (frame.repairs < work.repairs) return Admission::kTakenOver;
  const bool newer = frame.repairs > work.repairs;
  const bool moved = work.upstream != sender;
  work.repairs = frame.repairs;
  if (lease.repair && !work.lease.repair) work.lease = lease;
  work.deadline = std::max(work.deadline, now_ + std::min(frame.lifetime_ms, spec_.timeouts.lease_ms));
  work.upstream = sender;
  work.adopted |= moved;
  if (moved && (work.state == WorkState::kReturning || work.state == WorkState::kReturned)) {
    abandon_send(work);
    work.state = WorkState::kReturning;
    send_back(key, work);
  } else if (newer && !moved && work.state == WorkState::kAwaitingGradient) {
    // It was given away and is back: downstream must learn that it goes on with this miner after all.
    send_forward_to(work.downstream, key, work);
  }
  return Admission::kDuplicate;
}

// All is done here, but the upstream that had the gradient is gone: its replacement gets it, and nothing is computed again.
std::optional<Admission> Miner::meet_kept(const MicrobatchKey& key, MinerIndex sender, const Repairs& repairs) {
  for (auto it = kept_.lower_bound({key.microbatch, 0}); it != kept_.end() && it->first.microbatch == key.microbatch;) {
    const auto entry = it++;
    if (entry->first.attempt > key.attempt) return Admission::kStaleAttempt;
    Kept& kept = entry->second;
    if (entry->first.attempt == key.attempt && repairs < kept.repairs) return Admission::kTakenOver;
    kept_bytes_ -= kept.gradient.bytes.size();
    Kept taken = std::move(kept);
    const bool same_attempt = entry->first.attempt == key.attempt;
    kept_.erase(entry);
    if (!same_attempt) continue;
    Work work;
    work.state = WorkState::kReturning;
    work.lease = std::move(taken.lease);
    work.deadline = taken.deadline;
    work.upstream = sender;
    work.repairs = repairs;
    work.payload = std::move(taken.gradient);
    send_back(key, works_.emplace(key, std::move(work)).first->second);
    return Admission::kDuplicate;
  }
  return std::nullopt;
}

void Miner::keep_gradient(const MicrobatchKey& key, Work& work) {
  const size_t bytes = work.payload.bytes.size();
  if (now_ >= work.deadline || bytes > kMaxKeptBytes) return;
  kept_bytes_ += bytes;
  kept_.insert_or_assign(key, Kept{std::move(work.payload), work.repairs, work.lease, work.deadline});
  kept_order_.push_back(key);
  forget_kept();
}

void Miner::forget_kept() {
  while (!kept_order_.empty()) {
    const auto oldest = kept_.find(kept_order_.front());
    const bool over = kept_.size() > kMaxKept || kept_order_.size() > 2 * kMaxKept || kept_bytes_ > kMaxKeptBytes;
    if (oldest != kept_.end() && !over && now_ < oldest->second.deadline) return;
    if (oldest != kept_.end()) {
      kept_bytes_ -= oldest->second.gradient.bytes.size();
      kept_.erase(oldest);
    }
    kept_order_.pop_front();
  }
}

Admission Miner::admit_backward(miner_event::FrameArrived& event) {
  Frame& frame = event.frame;
  if (!assignment_ || frame.boundary != assignment_->stage) return Admission::kWrongStage;
  const MicrobatchKey key{frame.microbatch, frame.attempt};
  const auto found = works_.find(key);
  if (found == works_.end()) return Admission::kUnknownMicrobatch;
  Work& work = found->second;
  const auto sender = peers_.find(work.downstream);
  if (sender == peers_.end() || sender->second.peer.node != event.sender) {
    return work.given_again > 0 ? Admission::kTakenOver : Admission::kUnknownMicrobatch;
  }
  // The gradient may overtake the answer to the forward frame.
  if (work.state != WorkState::kSending && work.state != WorkState::kAwaitingGradient) return Admission::kDuplicate;
  if (work.state == WorkState::kSending) {
    abandon_send(work);
    work.retry_at = 0;
    status_.boundary_tensors_sent++;
  } else {
    // Late ones too: if all take longer, none of them is overdue any more.
    sender->second.gradients.add(now_ - work.accepted_at);
  }
  release_downstream(work);
  work.state = WorkState::kBackwardQueued;
  work.payload = {frame.exponent, std::move(frame.payload)};
  work.receipt.gradient_in_hash = event.payload_hash;
  backward_queue_.push_back(key);
  return Admission::kAccepted;
}

}  // namespace tessera::core
