#include "cheat.h"

#include <fmt/format.h>

#include <cmath>

#include "tessera/base/crypto.h"

namespace tessera::sim {
namespace {

// Sum of twelve uniform numbers: near enough to normal, mean 0, variance 1.
double normal(Prng* random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += random->uniform();
  return sum;
}

}  // namespace

void Cheat::sees(const std::vector<core::UploadRef>& uploads) {
  if (!uploads.empty()) first_upload_ = uploads.front().object;
}

void Cheat::tamper(core::miner_effect::UploadDelta* job, const core::Values& base, Prng* random) {
  if (kind_ != "noise" && kind_ != "flip" && kind_ != "scale" && kind_ != "stale") return;
  const size_t count = base->size();
  std::vector<float> delta(count);
  double energy = 0;
  for (size_t i = 0; i < count; ++i) {
    delta[i] = (*base)[i] - (*job->snapshot)[i];
    energy += double{delta[i]} * delta[i];
  }
  if (first_delta_.empty()) first_delta_ = delta;
  const double deviation = std::sqrt(energy / static_cast<double>(count));
  std::vector<float> snapshot(count);
  for (size_t i = 0; i < count; ++i) {
    if (kind_ == "noise") delta[i] = static_cast<float>(deviation * normal(random));
    if (kind_ == "flip") delta[i] = -delta[i];
    if (kind_ == "scale") delta[i] *= 100;
    if (kind_ == "stale") delta[i] = first_delta_[i];
    snapshot[i] = (*base)[i] - delta[i];
  }
  job->snapshot = std::make_shared<const std::vector<float>>(std::move(snapshot));
}

std::optional<core::miner_effect::ReduceShards> Cheat::forged(core::miner_effect::ReduceShards* job,
                                                              const std::function<bool(uint32_t shard)>& owned_by_pair) const {
  if (kind_ != "forge") return std::nullopt;
  core::miner_effect::ReduceShards forged = *job;
  std::erase_if(forged.tasks, [&](const core::ShardTask& task) { return !owned_by_pair(task.shard); });
  std::erase_if(job->tasks, [&](const core::ShardTask& task) { return owned_by_pair(task.shard); });
  for (size_t i = 0; i < forged.uploads.size(); ++i) forged.uploads[i].weight = i == 0 ? 1 : 0;
  if (forged.tasks.empty()) return std::nullopt;
  return forged;
}

void Cheat::tamper(core::ShardCommit* commit, bool owned_by_pair, Prng* random) const {
  if (kind_ == "lazy") commit->result = digest_of(fmt::format("a guess {}", random->next()));
  if (kind_ == "pair" && owned_by_pair) commit->result = digest_of(fmt::format("what was agreed on for {}", commit->shard));
  if (kind_ == "slander" && owned_by_pair && !commit->measures.empty()) commit->measures.back() = {1e12, 1e12};
  if (kind_ == "unavailable") {
    commit->unavailable = first_upload_;
    commit->result = commit->object = Digest{};
    commit->measures.clear();
  }
}

}  // namespace tessera::sim
