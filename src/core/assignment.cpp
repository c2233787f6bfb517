#include "tessera/core/assignment.h"

#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/stage_layout.h"

namespace tessera::core {
namespace {

constexpr double kWorkspaceShare = 0.15;

bool on_gpu(const std::string& device) { return device.rfind("cuda", 0) == 0; }

// Values that a layer's forward pass keeps for its backward, of one token.
double kept_values(const ModelSpec& model, bool gpu) {
  const double kv = static_cast<double>(model.kv_heads) * (model.width / model.heads);
  if (gpu) return 6.0 * model.width + 2 * kv + 2.0 * model.ffn_width;
  return 10.0 * model.width + 2 * kv + 4.0 * model.ffn_width + static_cast<double>(model.heads) * model.context;
}

// Values of one token: of a microbatch between its forward and its backward, and of the one in its backward.
struct TokenValues {
  double waiting = 0;
  double working = 0;
};

TokenValues token_values(const RunSpec& spec, double layers, bool gpu) {
  const double layer = kept_values(spec.model, gpu), boundary = 2.0 * spec.model.width;
  const double gradients = gpu ? 4.0 * spec.model.width + 3.0 * spec.model.ffn_width : 0;
  const double all = layers * layer + boundary;
  const double inputs = layers * spec.model.width + boundary;
  switch (spec.training.recompute) {
    case Recompute::kOff: return {all, all + gradients};
    case Recompute::kBlock: return {inputs, inputs + layer + gradients};
    case Recompute::kFull: return {boundary, all + gradients};
  }
  return {};
}

// Speeds of miners, each in the stage it holds; what is not measured counts as the median of the measured.
std::vector<double> speeds_of(const std::vector<PlacedMiner>& miners) {
  std::vector<double> measured;
  for (const PlacedMiner& miner : miners) {
    if (miner.microbatch_ms > 0) measured.push_back(miner.microbatch_ms);
  }
  double median = 1;
  if (!measured.empty()) {
    const auto middle = measured.begin() + static_cast<std::ptrdiff_t>(measured.size() / 2);
    std::nth_element(measured.begin(), middle, measured.end());
    median = *middle;
  }
  std::vector<double> speeds;
  for (const PlacedMiner& miner : miners) speeds.push_back(1000 / (miner.microbatch_ms > 0 ? miner.microbatch_ms : median));
  return speeds;
}

std::vector<uint32_t> counts_of(const std::vector<PlacedMiner>& miners, size_t stages) {
  std::vector<uint32_t> counts(stages, 0);
  for (const PlacedMiner& miner : miners) counts[miner.stage]++;
  return counts;
}

double least_but(const std::vector<double>& throughputs, StageIndex from, StageIndex to) {
  double least = -1;
  for (StageIndex s = 0; s < throughputs.size(); ++s) {
    if (s != from && s != to && (least < 0 || throughputs[s] < least)) least = throughputs[s];
  }
  return least;
}

}  // namespace

uint64_t stage_memory_bytes(const RunSpec& spec, StageIndex stage, const std::string& device) {
  const bool gpu = on_gpu(device);
  const double compute_bytes = gpu ? 2 : 4;
  const auto values = static_cast<double>(stage_value_count(spec, stage));
  const double tokens = spec.tokens_per_microbatch();
  const LayerRange range = layers_of(spec, stage);
  const TokenValues token = token_values(spec, range.end - range.begin, gpu);
  const bool codes = gpu && spec.training.matrix_products == MatrixProducts::kFp8;
  double bytes = values * (16 + 2 * compute_bytes + (codes ? 4 : 0)) +
                 compute_bytes * tokens * (spec.pipeline.max_in_flight * token.waiting + token.working);
  if (stage + 1 == spec.pipeline.stages) bytes += 12 * tokens * spec.model.vocab;
  return static_cast<uint64_t>(bytes * (1 + kWorkspaceShare));
}

bool fits(const RunSpec& spec, StageIndex stage, const std::string& device, uint64_t memory_bytes) {
  return memory_bytes == 0 || stage_memory_bytes(spec, stage, device) <= memory_bytes;
}

std::string misfit(const RunSpec& spec, StageIndex stage, const std::string& device, uint64_t memory_bytes) {
  constexpr double kMiB = 1 << 20;
  RunSpec by_block = spec;
  by_block.training.recompute = Recompute::kBlock;
  const bool block_fits = spec.training.recompute != Recompute::kBlock && fits(by_block, stage, device, memory_bytes);
  return fmt::format(
      "stage {} needs {:.0f} MiB of device memory and this miner announces {:.0f} MiB; a larger device (or memory_bytes in "
      "the miner's YAML) would do, {}or a smaller pipeline.max_in_flight in the run, or fewer layers in the stage "
      "(tesseractl run stages)",
      stage, static_cast<double>(stage_memory_bytes(spec, stage, device)) / kMiB, static_cast<double>(memory_bytes) / kMiB,
      block_fits ? fmt::format("or training.recompute: block in the run ({:.0f} MiB), ",
                               static_cast<double>(stage_memory_bytes(by_block, stage, device)) / kMiB)
                 : "");
}

double stage_work(const RunSpec& spec, StageIndex stage) {
  const ModelSpec& model = spec.model;
  const double d = model.width, f = model.ffn_width;
  const double kv = static_cast<double>(model.kv_heads) * (model.width / model.heads);
  const LayerRange range = layers_of(spec, stage);
  double per_token = (range.end - range.begin) * (2 * d * d + 2 * d * kv + 3 * d * f + d * model.context);
  if (stage + 1 == spec.pipeline.stages) per_token += d * model.vocab;
  return per_token * spec.tokens_per_microbatch();
}

std::vector<double> stage_throughputs(const std::vector<PlacedMiner>& miners, size_t stages) {
  std::vector<double> throughputs(stages, 0);
  const std::vector<double> speeds = speeds_of(miners);
  for (size_t m = 0; m < miners.size(); ++m) throughputs[miners[m].stage] += speeds[m];
  return throughputs;
}

std::optional<StageIndex> choose_stage(const std::vector<PlacedMiner>& miners, const std::vector<StageSituation>& stages,
                                       const std::vector<bool>& fits, uint32_t needed) {
  const std::vector<double> throughputs = stage_throughputs(miners, stages.size());
  const std::vector<uint32_t> counts = counts_of(miners, stages.size());
  const auto rank = [&](StageIndex s) { return std::tuple(counts[s] >= needed, throughputs[s], s); };
  std::optional<StageIndex> best;
  for (StageIndex s = 0; s < stages.size(); ++s) {
    if (!fits[s] || !stages[s].takes) continue;
    if (!best || rank(s) < rank(*best)) best = s;
  }
  return best;
}

std::optional<StageMove> choose_move(const std::vector<PlacedMiner>& miners, const std::vector<StageSituation>& stages,
                                     double gain, uint32_t needed) {
  if (gain <= 0 || stages.size() < 2) return std::nullopt;
  const std::vector<double> speeds = speeds_of(miners);
  const std::vector<double> throughputs = stage_throughputs(miners, stages.size());
  const std::vector<uint32_t> counts = counts_of(miners, stages.size());
  const auto to = static_cast<StageIndex>(std::min_element(throughputs.begin(), throughputs.end()) - throughputs.begin());
  if (!stages[to].takes) return std::nullopt;
  const bool urgent = 2 * counts[to] < needed || counts[to] == 0;
  std::optional<StageMove> best;
  for (size_t m = 0; m < miners.size(); ++m) {
    const PlacedMiner& miner = miners[m];
    const StageIndex from = miner.stage;
    if (from == to || !miner.movable || !miner.fits[to] || counts[from] < 2) continue;
    // A swarm that is small everywhere has nothing to give: its stages would only take turns at being the smallest.
    const bool hurries = urgent && (counts[to] == 0 || counts[from] - 1 > counts[to]);
    if (!hurries && !stages[from].gives) continue;
    StageMove move{miner.miner, from, to, throughputs[to], 0, hurries};
    move.after = std::min(throughputs[from] - speeds[m], throughputs[to] + speeds[m] * stages[from].work / stages[to].work);
    if (const double others = least_but(throughputs, from, to); others >= 0) move.after = std::min(move.after, others);
    const bool worth = counts[to] == 0 || move.after > move.before * (1 + gain);
    if (!worth) continue;
    const auto rank = [&](const StageMove& candidate) {
      return std::tuple(-candidate.after, -throughputs[candidate.from], candidate.miner);
    };
    if (!best || rank(move) < rank(*best)) best = move;
  }
  return best;
}

std::string wrong_with(const StageMove& move, const std::vector<PlacedMiner>& before,
                       const std::vector<StageSituation>& stages, double gain, uint32_t needed) {
  const auto miner = std::find_if(before.begin(), before.end(), [&](const PlacedMiner& m) { return m.miner == move.miner; });
  if (miner == before.end() || miner->stage != move.from || move.from == move.to) return "it moves what is not there";
  if (!miner->movable) return "it moves a pinned or absent miner";
  if (!miner->fits[move.to]) return "the miner does not fit its new stage";
  if (!stages[move.to].takes) return "the new stage takes nobody";
  const std::vector<uint32_t> counts = counts_of(before, stages.size());
  if (counts[move.from] < 2) return "it empties a stage";
  const bool nearly_empty = counts[move.to] == 0 || (2 * counts[move.to] < needed && counts[move.from] - 1 > counts[move.to]);
  if (!stages[move.from].gives && !nearly_empty) return "it does not wait for the boundary";
  const std::vector<double> speeds = speeds_of(before);
  const std::vector<double> then = stage_throughputs(before, stages.size());
  std::vector<double> now(stages.size(), 0);
  for (size_t m = 0; m < before.size(); ++m) {
    const bool moved = before[m].miner == move.miner;
    now[moved ? move.to : before[m].stage] += speeds[m] * (moved ? stages[move.from].work / stages[move.to].work : 1);
  }
  const double least_then = *std::min_element(then.begin(), then.end());
  const double least_now = *std::min_element(now.begin(), now.end());
  if (then[move.to] != least_then) return "it is not to the poorest stage";
  const auto empty = [](const std::vector<double>& all) { return std::count(all.begin(), all.end(), 0.0); };
  if (empty(now) < empty(then)) return "";
  return least_now > least_then * (1 + gain) * (1 - 1e-9) ? "" : "it gains too little";
}

}  // namespace tessera::core
