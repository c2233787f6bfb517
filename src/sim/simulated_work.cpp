// What a miner's compute and background threads do, and how long it takes.
#include <algorithm>

#include "simulated_miner.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"
#include "tessera/sim/simulated_engine.h"

namespace tessera::sim {
namespace {

constexpr double kInputGradientShare = 0.5;  // of a backward pass: without the weights' gradient
constexpr size_t kMaxHeld = 256;
constexpr TimeUs kLeastJobUs = 100;

}  // namespace

double SimulatedMiner::layer_count() const {
  const core::LayerRange layers = core::layers_of(spec_, *stage_);
  return layers.end - layers.begin;
}

StatusOr<std::unique_ptr<ports::StageEngine>> SimulatedMiner::make_engine() {
  SimulatedEngineOptions options;
  options.whole_tensors = world_.whole_tensors;
  options.work = [this] {
    clock_ms_ = compute_ms_;
    return world_.fails(world_.sim.job_failures) ? unavailable("a simulated failure") : ok_status();
  };
  return std::make_unique<SimulatedEngine>(spec_, control_->miner()->stage().value(),
                                           std::move(options));
}

Status SimulatedMiner::begin(const core::RegisterAnswer& answer, const core::RunSpec& spec,
                             const core::DataPlan&, uint64_t) {
  spec_ = spec;
  blobs_ = std::make_unique<Blobs>(world_.blobs);
  background_ = std::make_unique<node::BackgroundJobs>(
      spec, *blobs_, "", answer.run_id,
      [this](core::MinerEvent event) { take_background_event(std::move(event)); });
  compute_ = std::make_unique<node::ComputeJobs>(
      [this] { return make_engine(); },
      [this](core::MinerEvent event) {
        compute_failed_ = std::holds_alternative<core::miner_event::ComputeFailed>(event);
        step(std::move(event));
      },
      [this](Status status) { control_->fail(std::move(status)); }, [this] { return clock_ms_; });
  return ok_status();
}

// ---- compute
// --------------------------------------------------------------------------------------------------------

void SimulatedMiner::compute(core::ComputeJob job) {
  if (const auto* discard = std::get_if<core::miner_effect::Discard>(&job))
    held_.erase(discard->key);
  compute_queue_.push_back(std::move(job));
  if (compute_until_us_ == kNever) start_compute();
}

TimeUs SimulatedMiner::compute_time(const core::ComputeJob& job) {
  double ms = world_.sim.optimizer_ms;
  if (std::holds_alternative<core::miner_effect::Forward>(job)) {
    ms = layer_count() * world_.sim.forward_ms_per_layer;
  } else if (const auto* backward = std::get_if<core::miner_effect::Backward>(&job)) {
    ms = layer_count() * world_.sim.backward_ms_per_layer *
         (backward->accumulate ? 1 : kInputGradientShare);
  }
  const double jitter = 1 + world_.sim.compute_jitter * (2 * world_.random.uniform() - 1);
  return std::max(kLeastJobUs, us_of_ms(ms * jitter / profile_.speed));
}

void SimulatedMiner::start_compute() {
  // Forgetting takes no time and has no answer.
  while (!compute_queue_.empty() &&
         std::holds_alternative<core::miner_effect::Discard>(compute_queue_.front())) {
    compute_->run(compute_queue_.front());
    compute_queue_.pop_front();
  }
  if (compute_queue_.empty()) return;
  const core::ComputeJob& job = compute_queue_.front();
  note_capacity();
  const TimeUs duration = compute_time(job);
  compute_ms_ = static_cast<double>(duration) / 1000;
  compute_until_us_ = world_.queue.now_us() + duration;
  world_.queue.push(compute_until_us_, EventKind::kComputeDone, node_, generation_);
  if (const auto* forward = std::get_if<core::miner_effect::Forward>(&job)) {
    world_.trace.line("forward {} {} {}", node_, forward->key.microbatch, forward->key.attempt);
  }
}

void SimulatedMiner::finish_compute() {
  compute_until_us_ = kNever;
  core::ComputeJob job = std::move(compute_queue_.front());
  compute_queue_.pop_front();
  clock_ms_ = 0;
  compute_failed_ = false;
  note_computed(job);
  compute_->run(job);
  if (control_ && compute_until_us_ == kNever) start_compute();
}

void SimulatedMiner::note_computed(const core::ComputeJob& job) {
  if (const auto* forward = std::get_if<core::miner_effect::Forward>(&job)) {
    world_.measures.computed(node_, generation_, *stage_, forward->key.microbatch, false,
                             compute_ms_);
  } else if (const auto* backward = std::get_if<core::miner_effect::Backward>(&job)) {
    world_.trace.line("backward {} {} {} {}", node_, backward->key.microbatch,
                      backward->key.attempt, backward->accumulate);
    world_.measures.computed(node_, generation_, *stage_, backward->key.microbatch, true,
                             compute_ms_);
    held_.erase(backward->key);
    // One that was dropped before it was computed leaves no trace here: it is forgotten when it is
    // certainly over.
    if (held_.size() > kMaxHeld) {
      std::erase_if(held_, [&](const core::MicrobatchKey& key) {
        return world_.measures.is_done(key.microbatch);
      });
    }
  }
}

// ---- background
// -----------------------------------------------------------------------------------------------------

StatusOr<std::vector<Digest>> SimulatedMiner::Blobs::put(const std::vector<std::string>& blobs) {
  if (failing) return unavailable("a simulated failure");
  for (const std::string& blob : blobs) bytes_up += blob.size();
  return store_.put(blobs);
}

StatusOr<std::vector<std::string>> SimulatedMiner::Blobs::get(const std::vector<Digest>& digests) {
  if (failing) return unavailable("a simulated failure");
  auto blobs = store_.get(digests);
  if (blobs.ok()) {
    for (const std::string& blob : *blobs) bytes_down += blob.size();
  }
  return blobs;
}

void SimulatedMiner::background(core::BackgroundJob job) {
  background_queue_.push_back(std::move(job));
  if (background_until_us_ == kNever) start_background();
}

// The job is done at once, but its event comes when its transfers would be over.
void SimulatedMiner::start_background() {
  if (background_queue_.empty()) return;
  core::BackgroundJob job = std::move(background_queue_.front());
  background_queue_.pop_front();
  blobs_->bytes_up = blobs_->bytes_down = 0;
  blobs_->failing = world_.fails(world_.sim.job_failures);
  if (auto* upload = std::get_if<core::miner_effect::UploadDelta>(&job)) {
    cheat_.tamper(upload, background_->base(), &world_.random);
  } else if (auto* reduction = std::get_if<core::miner_effect::ReduceShards>(&job); reduction != nullptr) {
    cheat_.sees(reduction->uploads);
    auto forged = cheat_.forged(reduction, [this](uint32_t shard) { return world_.owned_by_pair(*stage_, shard); });
    if (forged) {
      core::BackgroundJob aside(*std::move(forged));
      background_->run(aside);
    }
  }
  background_->run(job);
  note_merge(job);
  double scale = 1;
  if (const auto stage = control_->miner()->stage(); stage && world_.sim.stage_bytes > 0) {
    scale = static_cast<double>(world_.sim.stage_bytes) /
            static_cast<double>(sizeof(float) * core::stage_value_count(spec_, *stage));
  }
  const auto bytes = [&](uint64_t count) {
    return static_cast<uint64_t>(static_cast<double>(count) * scale);
  };
  const TimeUs duration =
      world_.network.bulk_time(bytes(blobs_->bytes_up), bytes(blobs_->bytes_down));
  background_until_us_ = world_.queue.now_us() + std::max(kLeastJobUs, duration);
  world_.queue.push(background_until_us_, EventKind::kBackgroundDone, node_, generation_);
}

void SimulatedMiner::note_merge(const core::BackgroundJob& job) {
  const bool uploads = std::holds_alternative<core::miner_effect::UploadDelta>(job);
  const bool reduces = std::holds_alternative<core::miner_effect::ReduceShards>(job);
  if (!uploads && !reduces && !std::holds_alternative<core::miner_effect::PrepareBase>(job)) return;
  world_.measures.moved_in_merge(uploads, blobs_->bytes_up, blobs_->bytes_down);
}

void SimulatedMiner::take_background_event(core::MinerEvent event) {
  if (auto* reduced = std::get_if<core::miner_event::ShardReduced>(&event); reduced != nullptr && reduced->ok) {
    cheat_.tamper(&reduced->commit, world_.owned_by_pair(*stage_, reduced->commit.shard), &world_.random);
  }
  if (auto* reduced = std::get_if<core::miner_event::ShardReduced>(&event);
      reduced != nullptr && reduced->ok && !reduced->commit.result.is_zero()) {
    if (world_.fails(world_.sim.lies)) {
      world_.liars.insert(node_);
      const std::string lie = fmt::format("a lie of {} {}", node_, world_.random.next());
      reduced->commit.result = digest_of(lie);
      reduced->commit.object = node::put_object(world_.blobs, lie).value();
    }
  } else if (auto* upload = std::get_if<core::miner_event::DeltaUploaded>(&event);
             upload != nullptr && upload->ok) {
    if (world_.fails(world_.sim.lost_uploads)) world_.blobs.forget(upload->commit.object);
  } else if (auto* base = std::get_if<core::miner_event::BasePrepared>(&event);
             base != nullptr && base->ok) {
    world_.trace.line("base {} {} {}", node_, base->target, base->state.brief());
    Digest merged = base->state;
    if (base->moments) {
      std::string all(merged.view());
      all += node::bytes_of(base->moments->first);
      all += node::bytes_of(base->moments->second);
      merged = digest_of(all);
    }
    world_.measures.base_computed(*stage_, base->target, merged);
  }
  background_events_.push_back(std::move(event));
}

void SimulatedMiner::finish_background() {
  background_until_us_ = kNever;
  std::vector<core::MinerEvent> events = std::move(background_events_);
  background_events_.clear();
  for (core::MinerEvent& event : events) step(std::move(event));
  if (control_ && background_until_us_ == kNever) start_background();
}

}  // namespace tessera::sim
