#include "swarm_summary.h"

#include <algorithm>
#include <map>

#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/core/orchestrator.h"

namespace tessera::apps {
namespace {

constexpr size_t kLossWindow = 20;  // microbatches that loss_first and loss_last average

struct LedgerView {
  core::Orchestrator run;
  std::map<MicrobatchId, float> losses;                 // of the tail's counted gradient
  std::map<MinerIndex, core::MinerStatus> reports;      // the last of each miner
  uint64_t receipts = 0;
};

// With its key: the replay needs the run's secret.
StatusOr<LedgerView> replay_ledger(const std::string& folder) {
  LedgerView view;
  TimeMs time = 0;
  const LedgerFlags ledger{.journal = folder, .key = ledger_key_file(folder + "/orchestrator.key")};
  const Status status = read_ledger(ledger, [&](const core::LedgerEntry& entry) -> Status {
    const core::Event& event = entry.event;
    time = std::max(time, entry.time);
    if (const auto* arrived = std::get_if<core::ReceiptsArrived>(&event)) {
      for (const core::Receipt& receipt : arrived->receipts) {
        view.receipts++;
        if (receipt.accumulated && receipt.stage + 1 == view.run.state().stages.size()) {
          view.losses[receipt.microbatch] = receipt.loss;
        }
      }
    } else if (const auto* reported = std::get_if<core::MinerReported>(&event)) {
      view.reports[reported->miner] = reported->status;
    }
    view.run.step(time, event);
    return ok_status();
  });
  if (!status.ok()) return status;
  if (!view.run.state().created) return data_loss("{}: no run in its journal", folder);
  return view;
}

nlohmann::json mean_of(std::map<MicrobatchId, float>::const_iterator begin, size_t count) {
  if (count == 0) return nullptr;
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += (begin++)->second;
  return sum / static_cast<double>(count);
}

struct Replica {
  StageIndex stage = 0;
  Epoch epoch = 0;
  Digest digest;  // of its base and outer momentum, hashed here
};

StatusOr<Replica> read_replica(const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(path));
  ByteReader reader(bytes);
  const std::string_view magic = reader.raw(4);
  const auto version = reader.number<uint32_t>();
  Replica replica;
  replica.stage = reader.number<uint32_t>();
  replica.epoch = reader.number<uint64_t>();
  if (!reader.ok() || magic != "TSST" || version != 1) return data_loss("{}: not a copy of a stage's state", path);
  replica.digest = digest_of(reader.raw(reader.remaining()));
  return replica;
}

// Which of the ledger's miners lived in this directory: none if it never registered.
const core::MinerRecord* miner_of(const std::string& directory, const core::OrchestratorState& state) {
  const StatusOr<std::string> about = read_file(directory + "/miner.json");
  if (!about.ok()) return nullptr;
  const nlohmann::json fields = nlohmann::json::parse(*about, nullptr, false);
  if (!fields.is_object() || !fields.contains("node") || !fields["node"].is_string()) return nullptr;
  for (const auto& [node, index] : state.by_node) {
    if (to_hex(node.view()) == fields["node"].get<std::string>()) return &state.miners[index];
  }
  return nullptr;
}

struct Replicas {
  bool identical = false;
  nlohmann::json rows = nlohmann::json::array();
};

// Every replica's own file, hashed. Those that the ledger counts as ready are at its epoch and equal within a stage, and
// every stage has one. A miner that was still loading when the run ended holds no replica yet: it gets a row, no say.
Replicas compare_replicas(const SummaryInputs& inputs, const core::OrchestratorState& state) {
  Replicas result;
  std::map<StageIndex, Digest> of_stage;
  bool all_fit = true;
  for (const std::string& directory : inputs.miner_directories) {
    const core::MinerRecord* miner = miner_of(directory, state);
    const bool ready = miner != nullptr && miner->placed && miner->live && miner->ready;
    const StatusOr<Replica> replica = read_replica(directory + "/stage_state.bin");
    nlohmann::json row = {{"miner", nullptr}, {"ready", ready}, {"stage", nullptr}, {"epoch", nullptr}, {"state", nullptr}};
    if (miner != nullptr) row["miner"] = miner->index;
    if (replica.ok()) {
      row["stage"] = replica->stage;
      row["epoch"] = replica->epoch;
      row["state"] = to_hex(replica->digest.view());
    }
    result.rows.push_back(std::move(row));
    if (!ready) continue;
    if (!replica.ok() || replica->stage != miner->stage || replica->epoch != state.stages[miner->stage].epoch) {
      all_fit = false;
      continue;
    }
    const auto [entry, is_new] = of_stage.emplace(replica->stage, replica->digest);
    all_fit &= is_new || entry->second == replica->digest;
  }
  result.identical = all_fit && of_stage.size() == state.stages.size();
  return result;
}

nlohmann::json compression_of(const LedgerView& ledger) {
  const core::RunSpec& spec = ledger.run.state().spec;
  nlohmann::json result = {{"payload", nullptr}, {"wire", nullptr}};
  if (spec.pipeline.stages < 2) return result;
  const double rows = spec.tokens_per_microbatch();
  const double uncompressed = rows * spec.model.width * 2;  // bf16
  result["payload"] = uncompressed / static_cast<double>(payload_bytes(spec.boundary.codec, spec.tokens_per_microbatch(),
                                                                       spec.boundary.rank));
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  for (const auto& [miner, status] : ledger.reports) {
    tensors += status.boundary_tensors_sent;
    bytes += status.peer_bytes_sent;
  }
  if (bytes > 0) result["wire"] = uncompressed * static_cast<double>(tensors) / static_cast<double>(bytes);
  return result;
}

}  // namespace

StatusOr<nlohmann::json> summarise(const SummaryInputs& inputs) {
  TESSERA_ASSIGN_OR_RETURN(const LedgerView ledger, replay_ledger(inputs.out));
  const core::OrchestratorState& state = ledger.run.state();
  uint64_t merges = 0;
  for (const core::StageRecord& stage : state.stages) merges += stage.merges;
  const size_t window = std::min(kLossWindow, ledger.losses.size());
  const auto last = std::prev(ledger.losses.end(), static_cast<int64_t>(window));
  const Replicas replicas = compare_replicas(inputs, state);
  const uint64_t tokens = state.done * state.spec.tokens_per_microbatch();
  return nlohmann::json{{"run_id", to_hex(state.run_id)},
                        {"phase", core::name_of(state.phase)},
                        {"seconds", inputs.seconds},
                        {"tokens", tokens},
                        {"tokens_per_second", inputs.seconds > 0 ? static_cast<double>(tokens) / inputs.seconds : 0.0},
                        {"loss_first", mean_of(ledger.losses.begin(), window)},
                        {"loss_last", mean_of(last, window)},
                        {"val_loss", nullptr},
                        {"merges", merges},
                        {"replicas_identical", replicas.identical},
                        {"replicas", replicas.rows},
                        {"compression", compression_of(ledger)},
                        {"microbatches",
                         {{"leased", state.leased},
                          {"done", state.done},
                          {"reissued", state.reissued},
                          {"repaired", state.repaired},
                          {"open", state.open.size()},
                          {"double_counted", state.double_counted}}},
                        {"receipts", ledger.receipts},
                        {"miners", inputs.miners_ended_well},
                        {"checkpoint", state.last_checkpoint}};
}

}  // namespace tessera::apps
