#include "apps/bench/orchestrator_load.h"

#include <fmt/format.h>

#include <cmath>

#include "tessera/base/prng.h"

namespace tessera::apps {
namespace {

constexpr uint64_t kMicrobatchesPerStep = 4;
constexpr auto kNap = std::chrono::microseconds(500);

}  // namespace

OrchestratorLoad::OrchestratorLoad(const LoadOptions& options, LoadTarget& target) : options_(options), target_(target) {
  miners_.reserve(options.miners);
  const uint64_t process = random_u64() | 1;
  for (uint32_t number = 0; number < options.miners; ++number) {
    SimulatedMiner& miner = miners_.emplace_back(SimulatedMiner{key_of(number)});
    miner.stage = static_cast<StageIndex>(number % options.stages);
    miner.incarnation = process + number;
  }
}

KeyPair OrchestratorLoad::key_of(uint32_t number) {
  return KeyPair::from_seed(digest_of(fmt::format("load miner {}", number)).view());
}

Digest OrchestratorLoad::state_of(StageIndex stage) { return digest_of(fmt::format("state of stage {}", stage)); }

bool OrchestratorLoad::join(std::chrono::seconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  while (ready_ < options_.miners && Clock::now() < end) {
    for (uint32_t number = 0; number < options_.miners; ++number) {
      const SimulatedMiner& miner = miners_[number];
      if (!miner.ready && !miner.waiting && waiting_ < 2000) heartbeat(number);
    }
    drain();
  }
  return ready_ == options_.miners;
}

void OrchestratorLoad::run(std::chrono::milliseconds length, const std::function<bool()>& stop) {
  const Clock::time_point begin = Clock::now();
  const auto apart = std::chrono::nanoseconds(static_cast<int64_t>(1e9 / (options_.heartbeat_hz * options_.miners)));
  uint64_t sent = 0;
  Clock::time_point asked = begin;
  while (Clock::now() - begin < length) {
    const Clock::time_point now = Clock::now();
    if (now - asked > std::chrono::milliseconds(10)) {
      asked = now;
      if (stop()) return;
    }
    finish_work(now);
    for (; begin + sent * apart <= now; ++sent) {
      if (miners_[next_].waiting) {
        ++figures.skipped;
      } else {
        heartbeat(next_);
      }
      next_ = (next_ + 1) % options_.miners;
    }
    drain();
  }
}

void OrchestratorLoad::settle(std::chrono::milliseconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  while (waiting_ > 0 && Clock::now() < end) drain();
}

std::vector<Acknowledged> OrchestratorLoad::acknowledged() const {
  std::vector<Acknowledged> all;
  for (const SimulatedMiner& miner : miners_) {
    if (miner.index == kNoMiner) continue;
    all.push_back({miner.index, miner.incarnation, miner.receipts_acknowledged, miner.lease_request - 1});
  }
  return all;
}

void OrchestratorLoad::heartbeat(uint32_t number) {
  SimulatedMiner& miner = miners_[number];
  miner.waiting = true;
  miner.asked_at = Clock::now();
  ++waiting_;
  const auto arrive = [this](Inbound inbound) {
    inbound.at = Clock::now();
    std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(inbound));
    arrived_.notify_one();
  };
  if (!miner.registered) {
    core::Registration registration;
    registration.node = miner.key.id();
    registration.incarnation = miner.incarnation;
    registration.address = fmt::format("10.{}.{}.{}:7000", number >> 16 & 255, number >> 8 & 255, number & 255);
    registration.device = "simulated";
    registration.wanted_stage = miner.stage;
    target_.register_miner(number, std::move(registration), [arrive, number](StatusOr<core::RegisterAnswer> answer) {
      arrive({.number = number, .at = {}, .registered = std::move(answer), .synced = {}});
    });
    return;
  }
  core::SyncRequest request;
  request.miner = miner.index;
  request.incarnation = miner.incarnation;
  request.status.phase = miner.ready ? core::MinerPhase::kReady : core::MinerPhase::kLoading;
  request.status.forward_ms = request.status.backward_ms = static_cast<float>(options_.work_ms) / 2;
  request.peers_version = miner.peers_version;
  if (miner.ready) request.applied = core::MergeApplied{.epoch = 0, .state = state_of(miner.stage)};
  if (miner.publishes) request.published_state = state_of(miner.stage);
  for (size_t i = 0; i < miner.receipts.size() && i < core::kMaxReceiptsPerSync; ++i) {
    request.receipts.push_back(miner.receipts[i]);
  }
  if (miner.ready && miner.stage == 0) {
    const double heads = std::ceil(static_cast<double>(options_.miners) / options_.stages);
    const double per_heartbeat = options_.receipts_per_second / options_.stages / heads / options_.heartbeat_hz;
    miner.lease_budget = std::min(miner.lease_budget + per_heartbeat, 4 * per_heartbeat + 1);
    request.lease_request = miner.lease_request;
    request.leases_wanted = static_cast<uint32_t>(miner.lease_budget);
  }
  target_.sync(number, std::move(request), [arrive, number](StatusOr<core::SyncAnswer> answer) {
    arrive({.number = number, .at = {}, .registered = {}, .synced = std::move(answer)});
  });
}

void OrchestratorLoad::drain() {
  std::vector<Inbound> arrived;
  {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, kNap, [&] { return !inbox_.empty(); });
    arrived.swap(inbox_);
  }
  for (Inbound& inbound : arrived) {
    SimulatedMiner& miner = miners_[inbound.number];
    miner.waiting = false;
    --waiting_;
    const double milliseconds = std::chrono::duration<double, std::milli>(inbound.at - miner.asked_at).count();
    if (inbound.registered) {
      on_registered(miner, std::move(*inbound.registered));
    } else {
      on_synced(miner, std::move(*inbound.synced), milliseconds);
    }
  }
}

void OrchestratorLoad::on_registered(SimulatedMiner& miner, StatusOr<core::RegisterAnswer> answer) {
  if (!answer.ok() || answer->refusal != core::RegisterRefusal::kNone) {
    ++figures.failures;
    return;
  }
  ++figures.registrations;
  if (miner.index != kNoMiner && miner.index != answer->miner) ++figures.forgotten;
  miner.index = answer->miner;
  miner.registered = true;
  run_id_ = answer->run_id;
  if (number_of_.size() <= miner.index) number_of_.resize(miner.index + 1, 0);
  number_of_[miner.index] = static_cast<uint32_t>(&miner - miners_.data());
}

void OrchestratorLoad::on_synced(SimulatedMiner& miner, StatusOr<core::SyncAnswer> answer, double milliseconds) {
  if (!answer.ok()) {
    // Another session, run or process: what was acknowledged is compared after the registration.
    if (answer.status().code() == absl::StatusCode::kUnauthenticated) miner.registered = false;
    ++figures.failures;
    return;
  }
  if (!answer->known) {
    miner.registered = false;
    return;
  }
  figures.answer_ms.push_back(static_cast<float>(milliseconds));
  if (answer->peers) miner.peers_version = answer->peers_version;
  if (answer->assignment && !miner.ready) {
    miner.ready = true;
    ++ready_;
  }
  miner.publishes |= answer->publish_state;
  if (answer->receipts_acknowledged < miner.receipts_acknowledged) ++figures.forgotten;
  while (!miner.receipts.empty() && miner.receipts.front().sequence <= answer->receipts_acknowledged) {
    miner.receipts.pop_front();
    ++figures.receipts;
  }
  miner.receipts_acknowledged = std::max(miner.receipts_acknowledged, answer->receipts_acknowledged);
  take_leases(miner, *answer);
}

void OrchestratorLoad::take_leases(SimulatedMiner& miner, const core::SyncAnswer& answer) {
  if (answer.lease_request != miner.lease_request || answer.leases.empty()) return;
  ++miner.lease_request;
  const Clock::time_point now = Clock::now();
  for (const core::Lease& lease : answer.leases) {
    ++figures.leases;
    miner.lease_budget -= 1;
    for (size_t s = 0; s < lease.pathway.size(); ++s) {
      if ((lease.counted_stages >> s & 1) != 0) continue;
      const auto after = std::chrono::milliseconds(options_.work_ms * static_cast<TimeMs>(s + 1));
      work_.emplace(now + after, Work{.miner = lease.pathway[s],
                                      .upstream = s == 0 ? kNoMiner : lease.pathway[s - 1],
                                      .downstream = s + 1 == lease.pathway.size() ? kNoMiner : lease.pathway[s + 1],
                                      .microbatch = lease.microbatch,
                                      .attempt = lease.attempt});
    }
  }
}

void OrchestratorLoad::finish_work(Clock::time_point now) {
  while (!work_.empty() && work_.begin()->first <= now) {
    const Work work = work_.begin()->second;
    work_.erase(work_.begin());
    if (work.miner < number_of_.size()) sign(work);
  }
}

void OrchestratorLoad::sign(const Work& work) {
  SimulatedMiner& miner = miners_[number_of_[work.miner]];
  core::Receipt receipt;
  receipt.sequence = ++miner.receipts_made;
  receipt.incarnation = miner.incarnation;
  receipt.miner = miner.index;
  receipt.stage = miner.stage;
  receipt.microbatch = work.microbatch;
  receipt.attempt = work.attempt;
  receipt.upstream = work.upstream;
  receipt.downstream = work.downstream;
  receipt.accumulated = true;
  receipt.local_step = (receipt.sequence - 1) / kMicrobatchesPerStep;
  receipt.order = static_cast<uint32_t>((receipt.sequence - 1) % kMicrobatchesPerStep);
  receipt.input_hash = receipt.gradient_out_hash = digest_of(fmt::format("boundary {} {}", work.microbatch, miner.stage));
  receipt.output_hash = receipt.gradient_in_hash = digest_of(fmt::format("boundary {} {}", work.microbatch, miner.stage + 1));
  receipt.loss = 2;
  receipt.forward_ms = static_cast<float>(options_.work_ms) / 3;
  receipt.backward_ms = static_cast<float>(options_.work_ms) * 2 / 3;
  receipt.unix_ms = unix_now_ms();
  receipt.signature = miner.key.sign(receipt.signed_bytes(run_id_));
  miner.receipts.push_back(receipt);
}

}  // namespace tessera::apps
