// Which miner holds which stage: newcomers, their queue, moves. The decisions themselves are in assignment.cpp.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

constexpr Epoch kCooldownEpochs = 2;      // of both stages after a move that was no emergency
constexpr TimeMs kMoveMs = 30000;         // for a miner to come back with its new stage, beyond what drains its leases
constexpr TimeMs kQueuePlaceMs = 600000;  // a waiting miner that is silent keeps its place this long

// A run that waits for its miners: one that a stage has beyond `needed` goes to a stage that has fewer. Every such move
// brings the start nearer.
std::optional<StageMove> choose_filler(const std::vector<PlacedMiner>& miners, const std::vector<StageSituation>& stages,
                                       uint32_t needed) {
  std::vector<uint32_t> counts(stages.size(), 0);
  for (const PlacedMiner& miner : miners) counts[miner.stage]++;
  for (StageIndex to = 0; to < stages.size(); ++to) {
    if (counts[to] >= needed || !stages[to].takes) continue;
    for (const PlacedMiner& miner : miners) {
      if (!miner.movable || counts[miner.stage] <= needed || !miner.fits[to]) continue;
      return StageMove{.miner = miner.miner, .from = miner.stage, .to = to, .before = 0, .after = 0, .urgent = true};
    }
  }
  return std::nullopt;
}

bool on_gpu(const Registration& registration) { return registration.device.rfind("cuda", 0) == 0; }

}  // namespace

// What the stages need of memory follows from the specification.
void Orchestrator::refresh_needs() {
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    state_.stages[s].need_cpu_bytes = stage_memory_bytes(state_.spec, s, "cpu");
    state_.stages[s].need_gpu_bytes = stage_memory_bytes(state_.spec, s, "cuda");
  }
}

bool Orchestrator::fits_stage(const Registration& registration, StageIndex stage) const {
  const StageRecord& record = state_.stages[stage];
  const uint64_t need = on_gpu(registration) ? record.need_gpu_bytes : record.need_cpu_bytes;
  return registration.memory_bytes == 0 || need <= registration.memory_bytes;
}

std::string Orchestrator::misfit_of(const Registration& registration) const {
  StageIndex smallest = 0;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    if (on_gpu(registration) ? state_.stages[s].need_gpu_bytes < state_.stages[smallest].need_gpu_bytes
                             : state_.stages[s].need_cpu_bytes < state_.stages[smallest].need_cpu_bytes) {
      smallest = s;
    }
  }
  const StageIndex asked = registration.wanted_stage.value_or(smallest);
  if (fits_stage(registration, asked)) return "";
  return misfit(state_.spec, asked, registration.device, registration.memory_bytes);
}

// A newcomer's work would lead nowhere in these phases.
std::string Orchestrator::stalled() const {
  const RunPhase next = state_.phase == RunPhase::kDraining || state_.phase == RunPhase::kCheckpointing
                            ? state_.after_checkpoint
                            : state_.phase;
  if (state_.restage) return "the run's stages are being changed";
  switch (next) {
    case RunPhase::kWaiting:
    case RunPhase::kRunning:
      return "";
    case RunPhase::kMerging:
      return "all microbatches of the run are done";
    default:
      return fmt::format("the run is {}", name_of(next));
  }
}

// Whether a newcomer to the stage can come by its state: from the blob store, from the run's seed, or from a replica.
bool Orchestrator::has_state(StageIndex s) const {
  const StageRecord& stage = state_.stages[s];
  if (!stage.published_state.is_zero() && stage.state_at(stage.published_epoch)) return true;
  if (stage.state_at(0)) return true;
  return stage_has_ready(s);
}

std::vector<PlacedMiner> Orchestrator::placed_miners(bool for_moves) const {
  std::vector<PlacedMiner> placed;
  std::vector<uint32_t> staying(state_.stages.size(), 0);  // ready ones
  for (const MinerRecord& miner : state_.miners) {
    if (!for_moves) break;
    staying[miner.stage] += miner.live && miner.ready && !miner.on_its_way_out() && !miner.pending_stage;
  }
  for (const MinerRecord& miner : state_.miners) {
    const bool coming = miner.assigned_stage && now_ < miner.moving_until;
    if (!miner.placed || miner.drain || !(miner.live || coming)) continue;
    PlacedMiner entry;
    entry.miner = miner.index;
    entry.stage = miner.assigned_stage.value_or(miner.pending_stage.value_or(miner.stage));
    entry.microbatch_ms = miner.microbatch_us / 1000.0;
    if (entry.stage != miner.stage) {
      entry.microbatch_ms *= stage_work(state_.spec, entry.stage) / stage_work(state_.spec, miner.stage);
    }
    if (for_moves) {
      entry.movable = miner.live && miner.ready && !miner.pinned && !miner.registration.wanted_stage &&
                      !miner.assigned_stage && !miner.pending_stage && staying[miner.stage] > 1;
      for (StageIndex s = 0; s < state_.stages.size(); ++s) {
        entry.fits.push_back(entry.movable && fits_stage(miner.registration, s));
      }
    }
    placed.push_back(std::move(entry));
  }
  return placed;
}

std::vector<StageSituation> Orchestrator::situations() const {
  std::vector<StageSituation> all;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) {
    all.push_back({.work = stage_work(state_.spec, s),
                   .gives = boundaries_.count(s) > 0 && state_.stages[s].epoch >= state_.stages[s].cooled_at,
                   .takes = has_state(s)});
  }
  return all;
}

// The stage for a process that registers; nothing: it has to wait. `before` is the miner's record, if it had a stage.
std::optional<StageIndex> Orchestrator::stage_for(const Registration& registration, const MinerRecord* before,
                                                  std::string* reason) const {
  if (before != nullptr) {
    const std::optional<StageIndex> ordered = before->assigned_stage ? before->assigned_stage : before->pending_stage;
    if (ordered && fits_stage(registration, *ordered)) return ordered;
  }
  if (const auto resumed = state_.resumable.find(registration.node);
      resumed != state_.resumable.end() && fits_stage(registration, resumed->second.stage)) {
    return resumed->second.stage;
  }
  const std::string stall = stalled();
  if (before != nullptr && fits_stage(registration, before->stage) &&
      (before->pinned || !stall.empty() || ready_count(before->stage) < state_.spec.pipeline.miners_per_stage)) {
    return before->stage;
  }
  *reason = stall;
  if (!stall.empty()) return std::nullopt;
  if (registration.wanted_stage) {
    if (has_state(*registration.wanted_stage)) return registration.wanted_stage;
    *reason = fmt::format("nobody has the state of stage {}", *registration.wanted_stage);
    return std::nullopt;
  }
  std::vector<bool> fitting;
  for (StageIndex s = 0; s < state_.stages.size(); ++s) fitting.push_back(fits_stage(registration, s));
  std::vector<PlacedMiner> others = placed_miners(false);
  std::erase_if(others, [&](const PlacedMiner& other) {
    return state_.miners[other.miner].registration.node == registration.node;
  });
  // A run that has not begun waits for all its stages alike.
  const uint32_t needed = state_.phase == RunPhase::kWaiting ? state_.spec.pipeline.miners_per_stage : 0;
  const std::optional<StageIndex> chosen = choose_stage(others, situations(), fitting, needed);
  if (!chosen) *reason = "nobody has the state of the stages that fit its memory";
  return chosen;
}

void Orchestrator::enqueue(MinerRecord& miner, const std::string& reason) {
  miner.placed = false;
  miner.why = "waits for a stage: " + reason;
  if (miner.ticket > 0) return;  // a process of the same miner waited before: its place stays
  std::erase_if(state_.waiting, [&](MinerIndex index) {
    MinerRecord& other = state_.miners[index];
    const bool lapsed = !other.live && now_ - other.lost_at > kQueuePlaceMs;
    if (lapsed) other.ticket = 0;
    return lapsed;
  });
  miner.ticket = state_.next_ticket++;
  state_.waiting.push_back(miner.index);
}

void Orchestrator::leave_queue(MinerRecord& miner) {
  if (miner.ticket == 0) return;
  miner.ticket = 0;
  std::erase(state_.waiting, miner.index);
}

size_t Orchestrator::queue_position(const MinerRecord& miner) const {
  const auto before = [&](MinerIndex index, uint64_t ticket) { return state_.miners[index].ticket < ticket; };
  return static_cast<size_t>(std::lower_bound(state_.waiting.begin(), state_.waiting.end(), miner.ticket, before) -
                             state_.waiting.begin()) + 1;
}

// In the order of their tickets; who can't have a stage yet, or is away, does not hold up those behind.
void Orchestrator::place_waiting() {
  if (state_.waiting.empty() || !stalled().empty()) return;
  for (const MinerIndex index : std::vector<MinerIndex>(state_.waiting)) {
    MinerRecord& miner = state_.miners[index];
    if (!miner.live) continue;
    std::string reason;
    const std::optional<StageIndex> stage = stage_for(miner.registration, nullptr, &reason);
    if (!stage) {
      miner.why = "waits for a stage: " + reason;
      continue;
    }
    leave_queue(miner);
    miner.stage = *stage;
    miner.placed = true;
    miner.why = "loading its stage";
    take_place(miner);
    peers_changed(index);
    say(fmt::format("miner {} leaves the queue for stage {}", index, *stage));
  }
}

// The miner is told at its next report; it drains, and its next incarnation has the stage.
void Orchestrator::move_now(MinerRecord& miner, StageIndex stage, const std::string& reason) {
  miner.pending_stage.reset();
  index_.update(state_, miner.index);
  if (stage == miner.stage) return;
  miner.assigned_stage = stage;
  miner.moving_until = now_ + state_.spec.timeouts.lease_ms + kMoveMs;
  miner.why = fmt::format("moves to stage {}: {}", stage, reason);
  peers_changed(miner.index);
  state_.moves++;
  say(fmt::format("miner {} moves from stage {} to stage {}: {}", miner.index, miner.stage, stage, reason));
}

// Measured times follow the machines' other load, and asked often enough they will say once that a move pays. What says so
// at every boundary for a while is believed.
void Orchestrator::note_poorest() {
  std::vector<StageSituation> all_give = situations();
  for (StageSituation& stage : all_give) stage.gives = true;
  const auto& pipeline = state_.spec.pipeline;
  const auto move = choose_move(placed_miners(true), all_give, pipeline.rebalance_gain, pipeline.miners_per_stage);
  const std::optional<StageIndex> wanted = move ? std::optional(move->to) : std::nullopt;
  state_.poorest_boundaries = !wanted ? 0 : wanted == state_.poorest ? state_.poorest_boundaries + 1 : 1;
  state_.poorest = wanted;
}

// Whether any move may be due at all. Members come and go all the time, and what follows looks at everybody.
bool Orchestrator::may_move_someone() const {
  const auto& pipeline = state_.spec.pipeline;
  const std::vector<StageSummary>& stages = index_.stages();
  if (state_.phase == RunPhase::kWaiting) {  // somebody has to be one too many; without the move the run may never begin
    return std::any_of(stages.begin(), stages.end(), [&](const StageSummary& stage) {
      return stage.staying + index_.moving() > pipeline.miners_per_stage;
    });
  }
  if (state_.phase != RunPhase::kRunning || pipeline.rebalance_gain <= 0) return false;
  return !boundaries_.empty() || std::any_of(stages.begin(), stages.end(), [&](const StageSummary& stage) {
    return stage.staying == 0 || 2 * stage.staying < pipeline.miners_per_stage;
  });
}

void Orchestrator::consider_moves() {
  if (boundaries_.empty() && !members_changed_) return;
  place_waiting();
  for (MinerRecord& miner : state_.miners) {
    if (index_.moving() == 0) break;
    if (!miner.pending_stage) continue;
    const bool merging = state_.phase == RunPhase::kRunning && state_.spec.merge.enabled && miner.ready && miner.live;
    if (!merging || boundaries_.count(miner.stage) > 0) move_now(miner, *miner.pending_stage, "assigned by an operator");
  }
  const auto& pipeline = state_.spec.pipeline;
  const bool may_move = may_move_someone();
  while (may_move && state_.phase == RunPhase::kWaiting) {
    const auto move = choose_filler(placed_miners(true), situations(), pipeline.miners_per_stage);
    if (!move) break;
    move_now(state_.miners[move->miner], move->to, fmt::format("the run waits for a miner of stage {}", move->to));
  }
  const bool rebalances = may_move && state_.phase == RunPhase::kRunning;
  if (rebalances && !boundaries_.empty()) note_poorest();
  for (size_t i = 0; rebalances && i < state_.stages.size(); ++i) {
    const auto move = choose_move(placed_miners(true), situations(), pipeline.rebalance_gain, pipeline.miners_per_stage);
    if (!move) break;
    StageRecord& from = state_.stages[move->from];
    StageRecord& to = state_.stages[move->to];
    if (!move->urgent && (to.epoch < to.cooled_at || state_.poorest != move->to ||
                          state_.poorest_boundaries < pipeline.rebalance_patience)) {
      break;
    }
    state_.poorest.reset();  // the next routine move is judged by what comes after this one
    from.cooled_at = from.epoch + kCooldownEpochs;
    to.cooled_at = to.epoch + kCooldownEpochs;
    move_now(state_.miners[move->miner], move->to,
             move->urgent ? fmt::format("stage {} is nearly empty", move->to)
                          : fmt::format("the run's throughput rises from {:.2f} to {:.2f} microbatches/s", move->before,
                                        move->after));
  }
  boundaries_.clear();
  members_changed_ = false;
}

}  // namespace tessera::core
