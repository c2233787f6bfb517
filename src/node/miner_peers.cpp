// The shell's side to peers: frames and probes in both directions.
#include <algorithm>

#include "miner_shell.h"
#include "tessera/base/log.h"
#include "tessera/core/payload_name.h"
#include "tessera/core/frame.h"

namespace tessera::node {
namespace {

constexpr size_t kFrameQueueLimit = 4096;  // a frame is refused above it; internal events still fit
constexpr size_t kMaxProbes = 1024;        // that wait for the control thread

}  // namespace

void MinerNode::Shell::on_frame(const ports::Caller& caller, std::string bytes,
                                std::function<void(core::Admission)> done) {
  std::shared_ptr<const RunFacts> facts;
  std::shared_ptr<BoundedQueue<Input>> inputs;
  {
    std::lock_guard lock(mutex_);
    facts = facts_;
    inputs = inputs_;
  }
  if (!facts) return done(core::Admission::kNotReady);
  core::miner_event::FrameArrived event;
  std::string why;
  const core::Admission checked =
      core::decode_frame(bytes, facts->spec, facts->run_tag, &event.frame, &why);
  if (checked != core::Admission::kAccepted) {
    ++unreadable_frames_;
    spdlog::warn("frame of {} bytes from {} refused ({}): {}", bytes.size(), caller.node.brief(),
                 core::name_of(checked), why);
    return done(checked);
  }
  // A gradient is never refused for want of room: there are not more of them than microbatches let
  // in.
  const bool forward = event.frame.direction == core::Direction::kForward;
  if (forward && inputs->size() >= kFrameQueueLimit) return done(core::Admission::kFull);
  event.payload_hash = core::name_of(core::BoundaryPayload{event.frame.exponent, event.frame.payload});
  event.sender = caller.node;
  {
    std::lock_guard lock(mutex_);
    event.reply = next_reply_++;
    replies_[event.reply] = done;
  }
  const uint64_t reply = event.reply;
  if (inputs->push(MinerEvent(std::move(event))) == PushResult::kOk) return;
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
  std::shared_ptr<BoundedQueue<Input>> inputs;
  {
    std::lock_guard lock(mutex_);
    inputs = inputs_;
    if (probes_.size() < kMaxProbes) {
      reply = next_reply_++;
      probes_[*reply] = done;
    }
  }
  if (!reply) return done(unavailable("too many probes wait for an answer; ask again later"));
  if (inputs->push(Probed{*reply}) == PushResult::kOk) return;
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

// Nobody will handle them any more; whoever sent a frame goes to another miner.
void MinerNode::Shell::refuse_waiting() {
  std::map<uint64_t, std::function<void(core::Admission)>> frames;
  std::map<uint64_t, std::function<void(StatusOr<core::PeerHealth>)>> probes;
  {
    std::lock_guard lock(mutex_);
    frames.swap(replies_);
    probes.swap(probes_);
  }
  for (const auto& [reply, done] : frames) done(core::Admission::kNotReady);
  for (const auto& [reply, done] : probes) done(unavailable("this miner ends"));
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
  links_.peers->send(effect.peer, core::encode_frame(effect.frame, spec_.model.vocab),
                     effect.timeout_ms, [queue = inputs_, id](core::Admission admission) {
                       queue->push(MinerEvent(core::miner_event::FrameAnswered{id, admission}));
                     });
}

void MinerNode::Shell::probe(const core::miner_effect::Probe& effect) {
  links_.peers->probe(effect.peer, effect.timeout_ms,
                      [queue = inputs_, id = effect.probe](StatusOr<core::PeerHealth> health) {
                        const bool ok = health.ok();
                        queue->push(MinerEvent(core::miner_event::ProbeAnswered{
                            id, ok, ok ? *health : core::PeerHealth{}}));
                      });
}

}  // namespace tessera::node
