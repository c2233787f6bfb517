// rewards: what a run's ledger is worth to whom, down to the receipts.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "commands.h"
#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "tessera/base/files.h"
#include "tessera/core/rewards.h"

namespace tessera::apps {
namespace {

struct Flags {
  LedgerFlags ledger;
  core::RewardRules rules;
  std::string miner;    // number, or the first digits of its key; empty: all
  uint64_t at_s = 0;    // unix seconds; 0: the ledger's last entry
  std::string weights;  // file for the weight vector
  bool explain = false;
  bool json = false;
};

// What has to be known before the receipts are weighed.
struct FirstPass {
  core::VoidedEpochs voided;
  core::MinerKeys keys;
  std::string run_id;
  TimeMs last = 0;
};

StatusOr<FirstPass> first_pass(const LedgerFlags& flags) {
  FirstPass pass;
  const Status status = read_ledger(flags, [&](const core::LedgerEntry& entry) {
    pass.voided.read(entry);
    pass.keys.read(entry.event);
    pass.last = std::max(pass.last, entry.time);
    if (const auto* created = std::get_if<core::RunCreated>(&entry.event)) pass.run_id = to_hex(created->run_id);
    return ok_status();
  });
  if (!status.ok()) return status;
  return pass;
}

StatusOr<std::optional<MinerIndex>> miner_of(const std::string& text, const std::vector<NodeId>& keys) {
  if (text.empty()) return std::optional<MinerIndex>();
  std::optional<MinerIndex> found;
  if (text.size() <= 6 && text.find_first_not_of("0123456789") == std::string::npos) {
    found = static_cast<MinerIndex>(std::stoul(text));
    if (*found < keys.size()) return found;
  }
  found.reset();
  for (MinerIndex miner = 0; miner < keys.size(); ++miner) {
    if (keys[miner].hex().rfind(text, 0) != 0) continue;
    if (found) return invalid_argument("more than one key begins with '{}': give more digits", text);
    found = miner;
  }
  if (!found) return not_found("no miner '{}' in this ledger: give its number, or the first digits of its key", text);
  return found;
}

nlohmann::json json_of(const core::RewardEpoch& epoch) {
  return {{"full", epoch.full},           {"forward_only", epoch.forward_only},
          {"contradicted", epoch.contradicted}, {"unconfirmed", epoch.unconfirmed},
          {"aged_out", epoch.aged_out},   {"score", epoch.score},
          {"voided", epoch.voided},       {"lost_score", epoch.lost_score}};
}

nlohmann::json json_of(const core::RewardedReceipt& receipt) {
  return {{"entry", receipt.entry},           {"unix_ms", receipt.time},   {"miner", receipt.miner},
          {"stage", receipt.stage},           {"epoch", receipt.epoch},    {"sequence", receipt.sequence},
          {"microbatch", receipt.microbatch}, {"attempt", receipt.attempt}, {"outcome", core::name_of(receipt.outcome)},
          {"why", receipt.why},               {"voided", receipt.voided},  {"score", receipt.score}};
}

nlohmann::json json_of_miner(const core::Rewards& rewards, const FirstPass& pass, MinerIndex miner, double pay) {
  core::RewardEpoch total;
  nlohmann::json epochs = nlohmann::json::array();
  for (const auto& [key, epoch] : rewards.epochs()) {
    if (key.miner != miner) continue;
    total.full += epoch.full;
    total.forward_only += epoch.forward_only;
    total.contradicted += epoch.contradicted;
    total.unconfirmed += epoch.unconfirmed;
    total.aged_out += epoch.aged_out;
    total.score += epoch.score;
    total.lost_score += epoch.lost_score;
    nlohmann::json entry = json_of(epoch);
    entry["stage"] = key.stage;
    entry["epoch"] = key.epoch;
    if (const auto* cause = pass.voided.find(key)) {
      entry["verdict"] = {{"entry", cause->entry},
                          {"kind", core::name_of(cause->verdict.kind)},
                          {"reason", cause->verdict.reason},
                          {"evidence", cause->verdict.evidence.hex()}};
    }
    epochs.push_back(std::move(entry));
  }
  nlohmann::json value = json_of(total);
  value.erase("voided");
  value["miner"] = miner;
  value["node"] = miner < pass.keys.keys().size() ? pass.keys.keys()[miner].hex() : "";
  value["pay"] = pay * total.score;
  value["epochs"] = std::move(epochs);
  return value;
}

nlohmann::json json_of(const core::RewardRules& rules) {
  nlohmann::json value = {{"pay", rules.pay}, {"forward_share", rules.forward_share}};
  if (rules.half_life_h > 0) {
    value["half_life_h"] = rules.half_life_h;
  } else {
    value["window_h"] = rules.window_h;
  }
  return value;
}

void print(const nlohmann::json& result, bool explain) {
  fmt::print("{:>5} {:8} {:>10} {:>10} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9}\n", "miner", "node", "pay", "score", "weight",
             "full", "forward", "contra", "unconf", "aged", "void");
  for (const auto& miner : result["miners"]) {
    fmt::print("{:>5} {:8} {:>10.2f} {:>10.2f} {:>8.4f} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9.2f}\n",
               miner["miner"].get<MinerIndex>(), miner["node"].get<std::string>().substr(0, 8), miner["pay"].get<double>(),
               miner["score"].get<double>(), miner["weight"].get<double>(), miner["full"].get<uint64_t>(),
               miner["forward_only"].get<uint64_t>(), miner["contradicted"].get<uint64_t>(),
               miner["unconfirmed"].get<uint64_t>(), miner["aged_out"].get<uint64_t>(), miner["lost_score"].get<double>());
    if (!explain) continue;
    for (const auto& epoch : miner["epochs"]) {
      fmt::print("      stage {} epoch {}: {} full, {} forward only, {} contradicted, {} unconfirmed, {} too old, score {:.2f}\n",
                 epoch["stage"].get<StageIndex>(), epoch["epoch"].get<Epoch>(), epoch["full"].get<uint64_t>(),
                 epoch["forward_only"].get<uint64_t>(), epoch["contradicted"].get<uint64_t>(),
                 epoch["unconfirmed"].get<uint64_t>(), epoch["aged_out"].get<uint64_t>(), epoch["score"].get<double>());
      if (epoch.contains("verdict")) {
        fmt::print("        void, {:.2f} lost: verdict of entry {} ({}): {}\n", epoch["lost_score"].get<double>(),
                   epoch["verdict"]["entry"].get<uint64_t>(), epoch["verdict"]["kind"].get<std::string>(),
                   epoch["verdict"]["reason"].get<std::string>());
      }
    }
  }
}

void print_receipt(const core::RewardedReceipt& receipt) {
  fmt::print("entry {} receipt {} of miner {}: microbatch {} attempt {} stage {} epoch {}: {} ({}){}, score {:.4f}\n",
             receipt.entry, receipt.sequence, receipt.miner, receipt.microbatch, receipt.attempt, receipt.stage,
             receipt.epoch, core::name_of(receipt.outcome), receipt.why, receipt.voided ? ", void" : "", receipt.score);
}

Status run(const Flags& flags) {
  TESSERA_ASSIGN_OR_RETURN(const FirstPass pass, first_pass(flags.ledger));
  TESSERA_ASSIGN_OR_RETURN(const std::optional<MinerIndex> wanted, miner_of(flags.miner, pass.keys.keys()));
  const TimeMs at = flags.at_s > 0 ? static_cast<TimeMs>(flags.at_s) * 1000 : pass.last;
  core::Rewards rewards(flags.rules, at, pass.voided);
  bool first = true;
  // Receipts are written as they come: there may be millions.
  const auto explain = [&](const std::vector<core::RewardedReceipt>& settled) {
    if (!flags.explain) return;
    for (const core::RewardedReceipt& receipt : settled) {
      if (wanted && receipt.miner != *wanted) continue;
      if (flags.json) {
        fmt::print("{}{}", first ? "" : ",", json_of(receipt).dump());
      } else {
        print_receipt(receipt);
      }
      first = false;
    }
  };
  if (flags.explain && flags.json) fmt::print("{{\"receipts\":[");
  TESSERA_RETURN_IF_ERROR(read_ledger(flags.ledger, [&](const core::LedgerEntry& entry) {
    if (entry.time <= at) explain(rewards.read(entry));
    return ok_status();
  }));
  explain(rewards.finish());

  const std::map<MinerIndex, double> scores = rewards.scores();
  double total = 0;
  for (const auto& [miner, score] : scores) total += score;
  nlohmann::json miners = nlohmann::json::array();
  nlohmann::json weights = nlohmann::json::array();
  for (const auto& [miner, score] : scores) {
    nlohmann::json value = json_of_miner(rewards, pass, miner, flags.rules.pay);
    value["weight"] = total > 0 ? score / total : 0.0;
    weights.push_back({{"miner", miner}, {"node", value["node"]}, {"weight", value["weight"]}});
    if (!wanted || miner == *wanted) miners.push_back(std::move(value));
  }
  const nlohmann::json result = {{"run_id", pass.run_id}, {"at_unix_ms", at}, {"rules", json_of(flags.rules)},
                                 {"total_score", total},  {"miners", miners}};
  if (!flags.weights.empty()) {
    const nlohmann::json vector = {{"run_id", pass.run_id}, {"at_unix_ms", at}, {"weights", weights}};
    TESSERA_RETURN_IF_ERROR(write_file_atomic(flags.weights, vector.dump(2) + "\n"));
  }
  if (flags.json) {
    const std::string text = result.dump();
    fmt::print("{}{}\n", flags.explain ? "]," : "{", text.substr(1));
  } else {
    print(result, flags.explain);
  }
  return ok_status();
}

}  // namespace

void add_rewards_commands(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("rewards", "What each miner's validated work is worth, down to the receipts");
  const auto flags = std::make_shared<Flags>();
  add_ledger_flags(command, &flags->ledger);
  command->add_option("--miner", flags->miner, "One miner: its number, or the first digits of its key");
  command->add_flag("--explain", flags->explain, "Every receipt, with what became of it and why; and every epoch");
  command->add_option("--pay", flags->rules.pay, "For a validated microbatch")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--forward-share", flags->rules.forward_share, "Of the pay, for a forward whose gradient did not count")
      ->check(CLI::Range(0.0, 1.0))->capture_default_str();
  CLI::Option* window = command->add_option("--window-h", flags->rules.window_h, "Work of the last so many hours counts in full, older work not at all")
      ->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--half-life-h", flags->rules.half_life_h, "Instead of a window: work loses half its weight in so many hours")
      ->check(CLI::PositiveNumber)->excludes(window);
  command->add_option("--at", flags->at_s, "As of this unix time in seconds; default: the ledger's last entry");
  command->add_option("--weights", flags->weights, "Write the weight vector for a payer here, as JSON");
  command->add_flag("--json", flags->json, "As JSON");
  command->callback([&action, flags] {
    action = [flags] {
      const Status status = run(*flags);
      return status.ok() ? kExitOk : fail("tesseractl", status);
    };
  });
}

}  // namespace tessera::apps
