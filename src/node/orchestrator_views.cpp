#include "orchestrator_views.h"

#include <fmt/format.h>

#include "merge_views.h"
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
  std::string layers;            // "0-5"
  double microbatches_per_s = 0; // its ready miners together, by their receipts; 0: not measured yet
  std::string merge;  // phase of the running one; empty: none
  Digest state;
  template <class A>
  void fields(A& a) {
    a("stage", stage)("epoch", epoch)("merges", merges)("merges_aborted", merges_aborted)(
        "shards_recomputed", shards_recomputed)("replica_mismatches", replica_mismatches)("ready", ready)(
        "layers", layers)("microbatches_per_s", microbatches_per_s)("merge", merge)("state", state);
  }
};

struct StatusView {
  std::string name;
  std::string run_id;
  std::string phase;
  uint64_t microbatches_total = 0;
  uint64_t microbatches_done = 0;
  uint64_t microbatches_leased = 0;    // leases: new microbatches, and the next two
  uint64_t microbatches_reissued = 0;  // as another attempt
  uint64_t microbatches_repaired = 0;  // the same attempt with another head
  uint64_t double_counted = 0;
  uint64_t lost = 0;                   // (stage, microbatch) without a gradient when the run was finished
  uint64_t tokens = 0;
  double loss = 0;
  uint64_t merges = 0;
  uint64_t audits_open = 0;            // of a finished run, which stays until they are judged; before, that is secret
  uint32_t miners_live = 0;
  uint32_t miners_waiting = 0;
  uint64_t moves = 0;
  uint64_t spec_version = 0;
  std::string last_checkpoint;
  std::vector<StageView> stages;
  template <class A>
  void fields(A& a) {
    a("name", name)("run_id", run_id)("phase", phase)("microbatches_total", microbatches_total)(
        "microbatches_done", microbatches_done)("microbatches_leased", microbatches_leased)(
        "microbatches_reissued", microbatches_reissued)("microbatches_repaired", microbatches_repaired)(
        "double_counted", double_counted)("lost", lost)("tokens", tokens)("loss", loss)(
        "merges", merges)("audits_open", audits_open)("miners_live", miners_live)("miners_waiting", miners_waiting)("moves", moves)(
        "spec_version", spec_version)("last_checkpoint", last_checkpoint)("stages", stages);
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
  double microbatches_per_s = 0;   // by its receipts; 0: not measured yet
  int64_t heard_ms_ago = -1;       // since its last report to this orchestrator's process; -1: none
  uint64_t memory_bytes = 0;
  uint64_t queue_position = 0;     // of one that waits for a stage; 0: it has one
  bool pinned = false;
  uint64_t receipts_rejected = 0;  // not signed by it, or not about it
  uint64_t failed_verdicts = 0;    // that void an epoch's score
  core::MinerStatus status;
  template <class A>
  void fields(A& a) {
    a("miner", miner)("node", node)("stage", stage)("address", address)("device", device)("state", state)(
        "why", why)("epoch", epoch)("counted", counted)("since_merge", since_merge)("microbatches_per_s", microbatches_per_s)("heard_ms_ago", heard_ms_ago)(
        "memory_bytes", memory_bytes)("queue_position", queue_position)("pinned", pinned)("receipts_rejected", receipts_rejected)(
        "failed_verdicts", failed_verdicts)("status", status);
  }
};

double per_second(const core::MinerRecord& miner) {
  return miner.microbatch_us == 0 ? 0 : 1e6 / miner.microbatch_us;
}

std::string state_of(const core::MinerRecord& miner) {
  if (!miner.live) return "lost";
  if (miner.drain) return "draining";
  if (!miner.placed) return "waiting";
  if (miner.assigned_stage && *miner.assigned_stage != miner.stage) return "moving";
  return miner.ready ? "ready" : "loading";
}

std::string status_view(const core::OrchestratorState& state, double loss) {
  StatusView view;
  view.phase = "none";
  if (!state.created) return to_json(view);  // no run yet
  view.loss = loss;
  view.name = state.spec.name;
  view.run_id = to_hex(state.run_id);
  view.phase = core::name_of(state.phase);
  view.microbatches_total = state.spec.total_microbatches();
  if (state.phase == core::RunPhase::kFinished) view.audits_open = state.audits.open.size();
  view.microbatches_done = state.done;
  view.microbatches_leased = state.leased;
  view.microbatches_reissued = state.reissued;
  view.microbatches_repaired = state.repaired;
  view.double_counted = state.double_counted;
  view.lost = state.lost;
  view.tokens = state.done * state.spec.tokens_per_microbatch();
  view.last_checkpoint = state.last_checkpoint;
  view.moves = state.moves;
  view.spec_version = state.spec_version;
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    const core::StageRecord& stage = state.stages[s];
    StageView entry{s, stage.epoch, stage.merges, stage.merges_aborted, stage.shards_recomputed,
                    stage.replica_mismatches, 0, "", 0, "", stage.state};
    const core::LayerRange layers = core::layers_of(state.spec, s);
    entry.layers = fmt::format("{}-{}", layers.begin, layers.end - 1);
    if (stage.merge) entry.merge = stage.merge->phase == core::MergePhase::kSnapshot ? "snapshot" : "reduce";
    view.stages.push_back(entry);
    view.merges += stage.merges;
  }
  for (const core::MinerRecord& miner : state.miners) {
    view.miners_live += miner.live;
    view.miners_waiting += miner.live && !miner.placed;
    if (!miner.live || !miner.ready) continue;
    view.stages[miner.stage].ready++;
    view.stages[miner.stage].microbatches_per_s += per_second(miner);
  }
  return to_json(view);
}

std::string miners_view(const ViewSources& sources) {
  const core::OrchestratorState& state = sources.core.state();
  std::vector<MinerView> views;
  for (const core::MinerRecord& miner : state.miners) {
    MinerView view;
    view.miner = miner.index;
    view.node = miner.registration.node;
    view.stage = miner.stage;
    view.address = miner.registration.address;
    view.device = miner.registration.device;
    view.state = state_of(miner);
    view.why = miner.why;
    view.epoch = miner.epoch;
    view.counted = miner.counted;
    view.since_merge = miner.fresh_total();
    view.microbatches_per_s = per_second(miner);
    view.memory_bytes = miner.registration.memory_bytes;
    view.pinned = miner.pinned;
    view.receipts_rejected = miner.receipts_rejected;
    view.failed_verdicts = miner.failed_verdicts;
    if (!miner.placed && miner.ticket > 0) view.queue_position = sources.core.queue_position(miner);
    const auto status = sources.statuses.find(miner.index);
    if (status != sources.statuses.end()) view.status = status->second;
    if (const auto heard = sources.heard.last_heard(miner.index)) view.heard_ms_ago = sources.now - *heard;
    views.push_back(std::move(view));
  }
  return to_json(views);
}

}  // namespace

StatusOr<std::string> view(const ViewSources& sources, const std::string& topic, const std::string& argument) {
  if (topic == "status") return status_view(sources.core.state(), sources.loss);
  if (topic == "miners") return miners_view(sources);
  if (topic == "merges") return merges_view(sources.core.state(), argument);
  return invalid_argument("unknown topic '{}'; known: status, miners, merges", topic);
}

}  // namespace tessera::node
