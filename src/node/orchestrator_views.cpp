#include "orchestrator_views.h"

#include <algorithm>

#include "tessera/base/archive.h"

namespace tessera::node {
namespace {

struct StageView {
  StageIndex stage = 0;
  Epoch epoch = 0;
  uint64_t merges = 0;
  uint64_t merges_aborted = 0;
  uint64_t shards_recomputed = 0;
  uint64_t replica_mismatches = 0;
  uint32_t ready = 0;
  std::string merge;  // phase of the running one; empty: none
  Digest state;
  template <class A>
  void fields(A& a) {
    a("stage", stage)("epoch", epoch)("merges", merges)("merges_aborted", merges_aborted)(
        "shards_recomputed", shards_recomputed)("replica_mismatches", replica_mismatches)("ready", ready)(
        "merge", merge)("state", state);
  }
};

struct StatusView {
  std::string name;
  std::string run_id;
  std::string phase;
  uint64_t microbatches_total = 0;
  uint64_t microbatches_done = 0;
  uint64_t microbatches_leased = 0;
  uint64_t microbatches_reissued = 0;
  uint64_t double_counted = 0;
  uint64_t tokens = 0;
  double loss = 0;
  uint64_t merges = 0;
  uint32_t miners_live = 0;
  std::string last_checkpoint;
  std::vector<StageView> stages;
  template <class A>
  void fields(A& a) {
    a("name", name)("run_id", run_id)("phase", phase)("microbatches_total", microbatches_total)(
        "microbatches_done", microbatches_done)("microbatches_leased", microbatches_leased)(
        "microbatches_reissued", microbatches_reissued)("double_counted", double_counted)("tokens", tokens)("loss", loss)(
        "merges", merges)("miners_live", miners_live)("last_checkpoint", last_checkpoint)("stages", stages);
  }
};

struct MinerView {
  MinerIndex miner = 0;
  NodeId node;
  StageIndex stage = 0;
  std::string address;
  std::string device;
  std::string state;
  std::string why;
  Epoch epoch = 0;
  uint64_t counted = 0;
  uint32_t since_merge = 0;
  core::MinerStatus status;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("node", node)("stage", stage)("address", address)("device", device)("state", state)(
        "why", why)("epoch", epoch)("counted", counted)("since_merge", since_merge)("status", status);
  }
};

std::string status_view(const core::OrchestratorState& state, double loss) {
  StatusView view;
  view.loss = loss;
  view.name = state.spec.name;
  view.run_id = to_hex(state.run_id);
  view.phase = core::name_of(state.phase);
  view.microbatches_total = state.spec.total_microbatches();
  view.microbatches_done = state.done;
  view.microbatches_leased = state.leased;
  view.microbatches_reissued = state.reissued;
  view.double_counted = state.double_counted;
  view.tokens = state.done * state.spec.tokens_per_microbatch();
  view.last_checkpoint = state.last_checkpoint;
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    const core::StageRecord& stage = state.stages[s];
    StageView entry{s, stage.epoch, stage.merges, stage.merges_aborted, stage.shards_recomputed,
                    stage.replica_mismatches, 0, "", stage.state};
    if (stage.merge) entry.merge = stage.merge->phase == core::MergePhase::kSnapshot ? "snapshot" : "reduce";
    view.stages.push_back(entry);
    view.merges += stage.merges;
  }
  for (const core::MinerRecord& miner : state.miners) {
    view.miners_live += miner.live;
    view.stages[miner.stage].ready += miner.live && miner.ready;
  }
  return to_json(view);
}

std::string miners_view(const core::OrchestratorState& state, const std::map<MinerIndex, core::MinerStatus>& statuses) {
  std::vector<MinerView> views;
  for (const core::MinerRecord& miner : state.miners) {
    MinerView view;
    view.miner = miner.index;
    view.node = miner.registration.node;
    view.stage = miner.stage;
    view.address = miner.registration.address;
    view.device = miner.registration.device;
    view.state = !miner.live ? "lost" : miner.ready ? "ready" : "loading";
    view.why = miner.why;
    view.epoch = miner.epoch;
    view.counted = miner.counted;
    view.since_merge = miner.fresh_total();
    if (const auto status = statuses.find(miner.index); status != statuses.end()) view.status = status->second;
    views.push_back(std::move(view));
  }
  return to_json(views);
}

}  // namespace

StatusOr<std::string> view(const core::OrchestratorState& state,
                           const std::map<MinerIndex, core::MinerStatus>& statuses, double loss,
                           const std::string& topic) {
  if (topic == "status") return status_view(state, loss);
  if (topic == "miners") return miners_view(state, statuses);
  return invalid_argument("unknown topic '{}'; known: status, miners", topic);
}

}  // namespace tessera::node
