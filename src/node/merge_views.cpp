#include "merge_views.h"

#include <fmt/format.h>

#include "tessera/base/archive.h"

namespace tessera::node {
namespace {

struct VerdictView {
  MinerIndex miner = kNoMiner;
  std::string fault;
  uint32_t shard = 0;
  uint64_t first_block = 0;
  uint64_t block_count = 0;
  Digest committed;
  Digest expected;
  double measure = 0;
  double bound = 0;
  Signature signature{};
  template <class A>
  void fields(A& a) {
    a("miner", miner)("fault", fault)("shard", shard)("first_block", first_block)("block_count", block_count)(
        "committed", committed)("expected", expected)("measure", measure)("bound", bound)("signature", signature);
  }
};

struct MergeView {
  std::string id;
  StageIndex stage = 0;
  Epoch epoch = 0;
  std::vector<MinerIndex> participants;
  std::vector<uint32_t> microbatches;
  std::vector<double> norms;
  std::vector<double> cosines;
  uint32_t shards = 0;
  uint32_t lost_without_rescue = 0;
  uint32_t recomputed = 0;
  std::vector<std::string> matrix;  // a row a participant; docs/protocol.md has the letters
  std::vector<VerdictView> verdicts;
  template <class A>
  void fields(A& a) {
    a("id", id)("stage", stage)("epoch", epoch)("participants", participants)("microbatches", microbatches)(
        "norms", norms)("cosines", cosines)("shards", shards)("lost_without_rescue", lost_without_rescue)(
        "recomputed", recomputed)("matrix", matrix)("verdicts", verdicts);
  }
};

char letter_of(core::OwnerOutcome outcome) {
  switch (outcome) {
    case core::OwnerOutcome::kRight:
      return '=';
    case core::OwnerOutcome::kWrong:
      return 'X';
    case core::OwnerOutcome::kMissing:
      return '-';
    case core::OwnerOutcome::kUnavailable:
      return 'u';
    case core::OwnerOutcome::kPending:
      break;
  }
  return '.';
}

// Row p, column q: how p did on the shard that it shared with q. A deviating miner is a row that differs.
std::vector<std::string> matrix_of(const core::MergeRecord& record) {
  const size_t n = record.participants.size();
  std::vector<std::string> rows(n, std::string(n, '.'));
  for (const core::ShardRecord& shard : record.shards) {
    rows[shard.owner_a][shard.owner_b] = letter_of(shard.outcome_a);
    if (shard.owner_b != shard.owner_a) rows[shard.owner_b][shard.owner_a] = letter_of(shard.outcome_b);
  }
  return rows;
}

MergeView view_of(StageIndex s, const core::StageRecord& stage, const core::MergeRecord& record, bool whole) {
  MergeView view;
  view.id = fmt::format("{}/{}", s, record.target);
  view.stage = s;
  view.epoch = record.target;
  view.participants = record.participants;
  view.microbatches = record.counts;
  view.shards = static_cast<uint32_t>(record.shards.size());
  view.lost_without_rescue = record.lost_without_rescue;
  for (const core::ShardRecord& shard : record.shards) view.recomputed += shard.recomputed;
  for (const core::MergeVerdict& verdict : stage.merge_verdicts) {
    if (verdict.target != record.target) continue;
    view.verdicts.push_back({verdict.miner, core::name_of(verdict.fault), verdict.shard, verdict.first_block,
                             verdict.block_count, verdict.committed, verdict.expected, verdict.measure, verdict.bound,
                             verdict.signature});
  }
  if (!whole) return view;
  view.norms = record.norms;
  view.cosines = record.cosines;
  view.matrix = matrix_of(record);
  return view;
}

}  // namespace

StatusOr<std::string> merges_view(const core::OrchestratorState& state, const std::string& which) {
  std::vector<MergeView> views;
  for (StageIndex s = 0; s < state.stages.size(); ++s) {
    for (const core::MergeRecord& record : state.stages[s].merge_records) {
      MergeView view = view_of(s, state.stages[s], record, !which.empty());
      if (which.empty()) {
        views.push_back(std::move(view));
      } else if (view.id == which) {
        return to_json(view);
      }
    }
  }
  if (which.empty()) return to_json(views);
  return not_found("no merge '{}' is remembered: name one as STAGE/EPOCH, of the last {} of a stage", which.substr(0, 64),
                   core::kMaxMergeRecords);
}

}  // namespace tessera::node
