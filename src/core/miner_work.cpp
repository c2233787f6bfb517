// A microbatch's way through a miner. Its frames from and to peers are in miner_frames.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr size_t kRemembered = 65536;     // accumulated microbatches
constexpr double kLeastAhead = 2;         // leases that wait at a head
constexpr float kLongestMs = 3'600'000;

float typical_with(RecentTimes& times, float milliseconds) {
  times.add(static_cast<uint32_t>(std::clamp(milliseconds, 0.001f, kLongestMs) * 1000));
  return static_cast<float>(times.typical()) / 1000;
}

}  // namespace

// Not more than it begins until the answer after next is there: what waits at a slow head grows old there, and others
// could begin it.
uint32_t Miner::leases_wanted() const {
  if (phase_ != MinerPhase::kReady || !is_head() || works_.size() >= spec_.pipeline.max_in_flight) return 0;
  const auto room = spec_.pipeline.max_in_flight - static_cast<uint32_t>(works_.size());
  const float ms = status_.forward_ms + status_.backward_ms;
  if (!(ms > 0)) return room;
  const auto waiting = std::count_if(works_.begin(), works_.end(), [](const auto& work) {
    return work.second.state == WorkState::kReadingTokens || work.second.state == WorkState::kForwardQueued;
  });
  const double begun = kLeastAhead + 2.0 * spec_.timeouts.sync_ms / static_cast<double>(ms);
  const double wanted = std::ceil(begun) - static_cast<double>(waiting);
  return wanted <= 0 ? 0 : static_cast<uint32_t>(std::min<double>(wanted, room));
}

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
    work.lease = lease;
    work.deadline = now_ + lease.lifetime_ms;
    work.repairs = {static_cast<uint8_t>(lease.repair ? 1 : 0)};
    if (lease.repair) {
      say(fmt::format("microbatch {} attempt {}: taken from the orchestrator in place of another", key.microbatch, key.attempt));
    }
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

// Hands the compute thread its next job when it is idle.
void Miner::schedule() {
  while (!computing_) {
    if (step_due_) {
      step_due_ = false;
      computing_ = true;
      step_learning_rate_ = learning_rate_at(spec_.training, schedule_step_);
      emit(ComputeJob(miner_effect::OptimizerStep{step_learning_rate_}));
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
      work.backward_running = true;
      const bool counted = (work.lease.counted_stages >> assignment_->stage & 1) != 0;
      work.accumulate = !counted && !is_accumulated(key);
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
  status_.forward_ms = typical_with(forward_times_, event.milliseconds);
  const auto found = works_.find(event.key);
  // Dropped meanwhile, or dropped and admitted again.
  if (found == works_.end() || found->second.state != WorkState::kForwarding) {
    enqueue(miner_effect::Discard{event.key});
    return;
  }
  Work& work = found->second;
  status_.forwards++;
  if (work.repairs.back() > 0) status_.recomputed++;
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

void Miner::on(miner_event::InputGradientReady& event) {
  const auto found = works_.find(event.key);
  if (found == works_.end() || found->second.state != WorkState::kBackwarding || is_head()) return;
  Work& work = found->second;
  work.payload = std::move(event.input_gradient);
  work.receipt.gradient_out_hash = event.gradient_hash;
  work.state = WorkState::kReturning;
  send_back(event.key, work);
}

void Miner::on(miner_event::BackwardDone& event) {
  computing_ = false;
  status_.backward_ms = typical_with(backward_times_, event.milliseconds);
  const auto found = works_.find(event.key);
  // The gradient is in the accumulator whether or not the microbatch is still wanted, so the receipt is written anyway;
  // drop() leaves a microbatch that is being computed to us.
  if (found == works_.end() || !found->second.backward_running) return;
  Work& work = found->second;
  work.backward_running = false;
  if (work.state == WorkState::kBackwarding) work.receipt.gradient_out_hash = event.gradient_hash;
  write_receipt(event.key, work, event.milliseconds);
  if (is_head()) {
    finish(event.key);
  } else if (work.state == WorkState::kBackwarding) {
    work.payload = std::move(event.input_gradient);
    work.state = WorkState::kReturning;
    send_back(event.key, work);
  } else if (work.state == WorkState::kReturned) {
    keep_gradient(event.key, work);
    finish(event.key);
  }
}

// Whether this gradient is in the masters, or on its way there, and will be counted.
bool Miner::is_accumulated(const MicrobatchKey& key) {
  if (accumulated_set_.count(key.microbatch) == 0) return false;
  const auto found = recovered_ids_.find(key.microbatch);
  if (found == recovered_ids_.end()) return true;
  // Its receipt may have died with the process that wrote it. Then the run asks for the gradient again, for ever: it gets another
  // one, which is counted.
  if (found->second && key.attempt > *found->second) {
    recovered_ids_.erase(found);
    return false;
  }
  found->second = key.attempt;
  return true;
}

void Miner::write_receipt(const MicrobatchKey& key, const Work& work, float milliseconds) {
  Receipt receipt = work.receipt;
  receipt.sequence = next_receipt_++;
  receipt.incarnation = identity_.incarnation;
  receipt.miner = identity_.index;
  receipt.stage = assignment_->stage;
  receipt.microbatch = key.microbatch;
  receipt.attempt = key.attempt;
  receipt.upstream = work.upstream;
  receipt.downstream = work.downstream;
  receipt.epoch = epoch_;
  receipt.accumulated = work.accumulate;
  receipt.repaired = work.given_again > 0 || work.adopted ||
                     std::any_of(work.repairs.begin(), work.repairs.end(), [](uint8_t count) { return count > 0; });
  receipt.local_step = local_steps_;
  receipt.order = accumulated_;
  receipt.backward_ms = milliseconds;
  receipt.unix_ms = now_ + identity_.unix_offset_ms;
  receipt.signature = identity_.sign(receipt.signed_bytes(identity_.run_id));
  receipts_.push_back(receipt);
  if (work.accumulate) {
    accumulated_++;
    if (accumulated_set_.insert(key.microbatch).second) accumulated_ids_.push_back(key.microbatch);
    if (accumulated_ids_.size() > kRemembered) {
      accumulated_set_.erase(accumulated_ids_.front());
      accumulated_ids_.pop_front();
    }
    step_due_ = accumulated_ >= spec_.training.microbatches_per_step;
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
  note_step(step_learning_rate_, accumulated_, !event.ok);
  accumulated_ = 0;
  local_steps_++;
  schedule_step_++;
  if (local_steps_ - segment_step_ >= spec_.audit.segment_steps) begin_segment(false);
  save_if_due();
}

void Miner::on(miner_event::ComputeFailed& event) {
  computing_ = false;
  if (const auto found = works_.find(event.key); found != works_.end()) {
    if (found->second.backward_running) segment_whole_ = false;  // the engine may have lost the accumulated gradient
    found->second.backward_running = false;
    found->second.state = WorkState::kBackwardQueued;  // nothing is computing it any more
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
  if (work.backward_running) return;
  say(fmt::format("microbatch {} attempt {} dropped: {}", key.microbatch, key.attempt, reason), true);
  std::erase(forward_queue_, key);
  std::erase(backward_queue_, key);
  abandon_send(work);
  release_downstream(work);
  const bool engine_holds = work.state == WorkState::kSending || work.state == WorkState::kAwaitingGradient ||
                            work.state == WorkState::kBackwardQueued;
  if (engine_holds) enqueue(miner_effect::Discard{key});
  finish(key);
}

// The peers have gone on without this process: what they have given to others must not be accumulated here too.
void Miner::stood_still(TimeMs ms) {
  woke_at_ = now_;
  probes_.clear();
  for (auto& [index, peer] : peers_) {
    peer.probe = 0;
    peer.heard_at = now_;
  }
  std::vector<MicrobatchKey> lost;
  for (auto& [key, work] : works_) {
    work.gradient_due = std::max(work.gradient_due, now_ + spec_.timeouts.peer_ms);
    const bool given_away = is_head() ? ms >= spec_.timeouts.miner_lost_ms : work.state == WorkState::kBackwardQueued;
    if (given_away) lost.push_back(key);
  }
  say(fmt::format("this process stood still for {} ms", ms), true);
  for (const MicrobatchKey& key : lost) drop(key, "another miner has it by now");
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
