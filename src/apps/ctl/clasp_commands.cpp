// clasp analyze, clasp report: which miners make the loss worse, by pathways and losses.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "tessera/core/clasp.h"
#include "tessera/core/clasp_samples.h"

namespace tessera::apps {
namespace {

constexpr size_t kLongestLine = 1u << 20;

struct Flags {
  std::string in;
  LedgerFlags ledger;
  core::ClaspOptions options;
  bool json = false;
};

nlohmann::json number_or_null(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

nlohmann::json json_of(const core::Clasp& clasp, const core::ClaspOptions& options) {
  nlohmann::json miners = nlohmann::json::array();
  for (const core::ClaspMiner& miner : clasp.result()) {
    miners.push_back({{"id", miner.id},
                      {"stage", miner.stage},
                      {"samples", miner.samples},
                      {"effect", number_or_null(miner.effect)},
                      {"ci_low", number_or_null(miner.ci_low)},
                      {"ci_high", number_or_null(miner.ci_high)},
                      {"z", miner.z},
                      {"flagged", miner.flagged},
                      {"mean_loss", miner.mean_loss},
                      {"p_value", miner.p_value},
                      {"reason", core::name_of(miner.reason)}});
  }
  return {{"miners", miners},
          {"samples", clasp.samples()},
          {"stages", clasp.stages()},
          {"false_positive_rate", options.false_positive_rate},
          {"confidence", options.confidence},
          {"min_effect", options.min_effect}};
}

void print_table(const nlohmann::json& report) {
  fmt::print("{} microbatches, {} stages; at most {:.1f} % of the flags are false\n", report["samples"].get<uint64_t>(),
             report["stages"].get<uint64_t>(), 100 * report["false_positive_rate"].get<double>());
  fmt::print("{:>5} {:>16} {:>8} {:>9} {:>21} {:>7} {:>9}\n", "stage", "miner", "samples", "effect", "interval", "z", "p");
  for (const auto& miner : report["miners"]) {
    const bool known = miner["effect"].is_number();
    const std::string interval =
        known ? fmt::format("{:+.4f} .. {:+.4f}", miner["ci_low"].get<double>(), miner["ci_high"].get<double>()) : "-";
    fmt::print("{:>5} {:>16} {:>8} {:>9} {:>21} {:>7.2f} {:>9.2g}{}{}\n", miner["stage"].get<uint32_t>(),
               miner["id"].get<std::string>(), miner["samples"].get<uint64_t>(),
               known ? fmt::format("{:+.4f}", miner["effect"].get<double>()) : "-", interval, miner["z"].get<double>(),
               miner["p_value"].get<double>(), miner["flagged"].get<bool>() ? "  FLAGGED" : "",
               miner["reason"] == "tested" ? "" : "  " + miner["reason"].get<std::string>());
  }
}

// What is wrong with the line; empty if it was taken.
std::string take_line(const std::string& line, core::Clasp* clasp) {
  const nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
  constexpr const char* kShape = R"(write {"pathway": ["miner of stage 0", ...], "loss": 4.51, "time": 12.0})";
  if (value.is_discarded()) return fmt::format("not JSON: {}", kShape);
  if (!value.is_object()) return fmt::format("not an object: {}", kShape);
  const auto pathway = value.find("pathway");
  const auto loss = value.find("loss");
  const auto time = value.find("time");
  if (pathway == value.end() || !pathway->is_array()) return fmt::format("no list 'pathway': {}", kShape);
  if (loss == value.end() || !loss->is_number()) return fmt::format("no number 'loss': {}", kShape);
  if (time == value.end() || !time->is_number()) return fmt::format("no number 'time': {}", kShape);
  std::vector<std::string> miners;
  for (const auto& miner : *pathway) {
    if (!miner.is_string()) return fmt::format("a miner in 'pathway' is no text: {}", kShape);
    miners.push_back(miner.get<std::string>());
  }
  return clasp->add(miners, loss->get<double>(), time->get<double>());
}

// One line at a time; true at the end of the input. A line over the limit is passed over, and said to be so.
bool next_line(std::istream& in, std::string* line, bool* too_long) {
  line->clear();
  *too_long = false;
  for (int c = in.get(); c != std::istream::traits_type::eof(); c = in.get()) {
    if (c == '\n') return true;
    if (line->size() < kLongestLine) {
      line->push_back(static_cast<char>(c));
    } else {
      *too_long = true;
    }
  }
  return !line->empty();
}

int analyze(const Flags& flags) {
  std::ifstream file;
  if (flags.in != "-") {
    file.open(flags.in, std::ios::binary);
    if (!file) return fail("tesseractl", not_found("{}: can't be read", flags.in));
  }
  std::istream& in = flags.in == "-" ? std::cin : file;
  core::Clasp clasp(flags.options);
  std::string line;
  bool too_long = false;
  uint64_t number = 0;
  uint64_t bad = 0;
  while (next_line(in, &line, &too_long)) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string wrong =
        too_long ? fmt::format("longer than {} bytes: one microbatch a line", kLongestLine) : take_line(line, &clasp);
    if (wrong.empty()) continue;
    ++bad;
    fmt::print(stderr, "tesseractl: {}:{}: {}\n", flags.in, number, wrong);
  }
  if (in.bad()) return fail("tesseractl", data_loss("{}: reading failed at line {}", flags.in, number));
  if (clasp.samples() == 0) {
    return fail("tesseractl", invalid_argument("{}: no microbatch in {} lines", flags.in, number));
  }
  nlohmann::json report = json_of(clasp, flags.options);
  report["bad_lines"] = bad;
  if (flags.json) {
    fmt::print("{}\n", report.dump());
  } else {
    print_table(report);
  }
  if (bad > 0) fmt::print(stderr, "tesseractl: {} of {} lines were left out; mend or remove them\n", bad, number);
  return bad > 0 ? kExitFailure : kExitOk;
}

int report(const Flags& flags) {
  core::ClaspSamples samples;
  core::Clasp clasp(flags.options);
  uint64_t refused = 0;
  const Status status = read_ledger(flags.ledger, [&](const core::LedgerEntry& entry) {
    for (const core::ClaspSample& sample : samples.read(entry)) {
      std::vector<std::string> ids;
      for (const MinerIndex miner : sample.pathway) ids.push_back(fmt::format("{}", miner));
      refused += !clasp.add(ids, sample.loss, sample.time_s).empty();
    }
    return ok_status();
  });
  if (!status.ok()) return fail("tesseractl", status);
  const core::ClaspSampleCounts& counts = samples.counts();
  nlohmann::json result = json_of(clasp, flags.options);
  result["random_pathways"] = {{"published", counts.published},
                               {"used", clasp.samples()},
                               {"repaired", counts.repaired},
                               {"incomplete", counts.incomplete},
                               {"refused", refused},
                               {"rerouted", counts.rerouted}};
  nlohmann::json& shares = result["random_pathways"]["miners"] = nlohmann::json::array();
  for (const auto& [miner, share] : samples.shares()) {
    shares.push_back({{"id", fmt::format("{}", miner)}, {"published", share.published}, {"left_out", share.left_out}});
  }
  if (flags.json) {
    fmt::print("{}\n", result.dump());
    return kExitOk;
  }
  if (counts.published == 0) {
    fmt::print("no random pathway is published yet: they are at the head stage's merges (pipeline.random_pathway_share)\n");
    return kExitOk;
  }
  if (clasp.samples() > 0) print_table(result);
  fmt::print("random pathways: {} published, {} used, {} repaired on the way, {} incomplete, {} others than proposed\n",
             counts.published, clasp.samples(), counts.repaired, counts.incomplete, counts.rerouted);
  for (const auto& [miner, share] : samples.shares()) {
    if (share.left_out > 0) fmt::print("miner {}: {} of its {} random pathways are left out\n", miner, share.left_out, share.published);
  }
  return kExitOk;
}

void add_options(CLI::App* command, const std::shared_ptr<Flags>& flags) {
  command->add_option("--false-positive-rate", flags->options.false_positive_rate,
                      "Of the flags, at most this share is false (Benjamini-Hochberg over all miners)")
      ->check(CLI::Range(1e-12, 0.5))->capture_default_str();
  command->add_option("--confidence", flags->options.confidence, "Of the intervals")
      ->check(CLI::Range(0.5, 0.999999))->capture_default_str();
  command->add_option("--min-effect", flags->options.min_effect, "Flag only who harms by more than this, in units of the loss")
      ->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_flag("--json", flags->json, "As JSON");
}

}  // namespace

void add_clasp_commands(CLI::App& app, Action& action) {
  CLI::App* clasp = app.add_subcommand("clasp", "Which miners make the loss worse");
  clasp->require_subcommand(1);
  const auto flags = std::make_shared<Flags>();
  CLI::App* analyzed = clasp->add_subcommand("analyze", "From a file of pathways and losses, one microbatch a line");
  analyzed->add_option("--in", flags->in, R"(JSON lines {"pathway": [...], "loss": 4.51, "time": 12.0}; - for stdin)")->required();
  add_options(analyzed, flags);
  analyzed->callback([&action, flags] { action = [flags] { return analyze(*flags); }; });
  const auto report_flags = std::make_shared<Flags>();
  CLI::App* reported = clasp->add_subcommand("report", "From a run's ledger: its random pathways that no repair has touched");
  add_ledger_flags(reported, &report_flags->ledger);
  add_options(reported, report_flags);
  reported->callback([&action, report_flags] { action = [report_flags] { return report(*report_flags); }; });
}

}  // namespace tessera::apps
