#include "measures.h"

#include <algorithm>

namespace tessera::sim {
namespace {

constexpr size_t kMaxReroutes = 1000000;  // remembered for the percentiles
constexpr size_t kMaxWaiting = 1000000;
constexpr size_t kMaxMarks = 10000;
constexpr size_t kMaxBases = 100000;
constexpr uint64_t kPruneEvery = 20000;

// Nearest rank; 0 of none.
double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto rank = static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank),
                   values.end());
  return values[rank];
}

double seconds_of(TimeUs at) { return static_cast<double>(at - kBeginUs) / 1e6; }

}  // namespace

Measures::Measures(const config::Scenario& scenario, const EventQueue& queue)
    : scenario_(scenario),
      queue_(queue),
      stages_(scenario.run.spec.pipeline.stages),
      stage_speed_(scenario.run.spec.pipeline.stages, 0.0) {}

void Measures::integrate() {
  const double least = *std::min_element(stage_speed_.begin(), stage_speed_.end());
  ideal_ += std::max(0.0, least) * static_cast<double>(queue_.now_us() - integrated_to_) / 1e6;
  integrated_to_ = queue_.now_us();
}

void Measures::process_began(uint32_t node, uint32_t generation) {
  if (generations_.size() <= node) {
    generations_.resize(node + 1, 0);
    capacities_.resize(node + 1);
  }
  generations_[node] = generation;
}

void Measures::process_ended(uint32_t node) {
  generations_[node] = 0;
  gradients_lost_ += gradients_at_stake(node);
}

void Measures::capacity(uint32_t node, std::optional<StageIndex> stage, double microbatches_per_s) {
  Capacity& capacity = capacities_[node];
  if (capacity.stage == stage) return;
  integrate();
  if (capacity.stage) stage_speed_[*capacity.stage] -= capacity.microbatches_per_s;
  capacity = {stage, microbatches_per_s};
  if (stage) stage_speed_[*stage] += microbatches_per_s;
}

void Measures::taken(uint32_t node, StageIndex stage, MicrobatchId microbatch) {
  if (waiting_.empty()) return;
  const auto waiting = waiting_.find({microbatch, stage});
  if (waiting == waiting_.end() || waiting->second.victim == node) return;
  ++reroutes_;
  if (reroutes_ < kMaxReroutes) {
    reroute_ms_[waiting->second.kind].push_back(
        static_cast<double>(queue_.now_us() - waiting->second.since) / 1000);
  }
  waiting_.erase(waiting);
}

void Measures::computed(uint32_t node, uint32_t generation, StageIndex stage,
                        MicrobatchId microbatch, bool backward, double ms) {
  total_ms_ += ms;
  if (backward && !waiting_.empty()) {
    const auto waiting = waiting_.find({microbatch, stage});
    if (waiting != waiting_.end() && waiting->second.victim == node) waiting_.erase(waiting);
  }
  if (is_done(microbatch)) {
    redone_live_ms_ += ms;
    return;
  }
  std::vector<StageWork>& stages = work_[microbatch];
  if (stages.empty()) {
    stages.resize(stages_);
    if (++work_began_ % kPruneEvery == 0) prune();
  }
  StageWork& work = work_[microbatch][stage];
  if (work.generation[backward] != 0) {
    const bool alive = generations_[work.node[backward]] == work.generation[backward];
    (alive ? redone_live_ms_ : redone_dead_ms_) += ms;
  }
  work.node[backward] = node;
  work.generation[backward] = generation;
}

void Measures::prune() {
  std::erase_if(work_, [&](const auto& entry) { return is_done(entry.first); });
  std::erase_if(waiting_, [&](const auto& entry) { return is_done(entry.first.first); });
}

void Measures::fault(const std::string& kind, uint32_t victims) {
  ++faults_;
  if (marks_.size() < kMaxMarks) marks_.push_back({seconds_of(queue_.now_us()), kind, victims});
}

void Measures::struck(config::FaultKind kind, uint32_t node, StageIndex stage,
                      const std::set<core::MicrobatchKey>& held) {
  for (const core::MicrobatchKey& key : held) {
    if (is_done(key.microbatch) || waiting_.size() >= kMaxWaiting) continue;
    waiting_[{key.microbatch, stage}] = {node, queue_.now_us(), kind};
  }
}

void Measures::base_computed(StageIndex stage, Epoch epoch, const Digest& state) {
  const auto [known, is_first] = bases_.emplace(std::pair(stage, epoch), state);
  if (!is_first && known->second != state) replicas_identical_ = false;
  if (bases_.size() > kMaxBases) bases_.erase(bases_.begin());
}

void Measures::sample(uint64_t microbatches_done) {
  integrate();
  samples_.push_back({seconds_of(queue_.now_us()), static_cast<double>(microbatches_done), ideal_});
}

void Measures::moved_in_merge(bool uploads, uint64_t up, uint64_t down) {
  merge_uploads_ += uploads;
  merge_bytes_up_ += up;
  merge_bytes_down_ += down;
}

void Measures::fill(Result* result, uint64_t microbatches_done) {
  sample(microbatches_done);
  const auto per_microbatch = static_cast<double>(scenario_.run.spec.tokens_per_microbatch());
  result->tokens = microbatches_done * scenario_.run.spec.tokens_per_microbatch();
  result->ideal_tokens = ideal_ * per_microbatch;
  result->throughput_share =
      result->ideal_tokens > 0 ? static_cast<double>(result->tokens) / result->ideal_tokens : 0;
  result->reroutes = reroutes_;
  std::vector<double> all;
  for (const auto& [kind, times] : reroute_ms_) {
    all.insert(all.end(), times.begin(), times.end());
    result->reroutes_by_fault.push_back({name_of(kind), times.size(), percentile(times, 0.5),
                                         percentile(times, 0.99), percentile(times, 1)});
  }
  result->reroute_ms_p50 = percentile(all, 0.5);
  result->reroute_ms_p99 = percentile(all, 0.99);
  result->reroute_ms_max = percentile(all, 1);
  if (total_ms_ > 0) {
    result->redone_share = redone_live_ms_ / total_ms_;
    result->redone_dead_share = redone_dead_ms_ / total_ms_;
  }
  result->faults = faults_;
  if (merge_uploads_ > 0) {
    result->bytes_up_per_miner = merge_bytes_up_ / merge_uploads_;
    result->bytes_down_per_miner = merge_bytes_down_ / merge_uploads_;
  }
  result->gradients_lost = gradients_lost_;
  result->fault_marks = marks_;
  result->replicas_identical = replicas_identical_;
  Sample before;
  for (const Sample& sum : samples_) {
    const double seconds = sum.at_s - before.at_s;
    if (seconds > 0) {
      result->samples.push_back(
          {sum.at_s, (sum.tokens_per_s - before.tokens_per_s) * per_microbatch / seconds,
           (sum.ideal_tokens_per_s - before.ideal_tokens_per_s) * per_microbatch / seconds});
    }
    before = sum;
  }
}

}  // namespace tessera::sim
