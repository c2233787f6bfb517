#include "tessera/sim/result.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace tessera::sim {

std::string Result::to_text() const {
  std::string text =
      fmt::format("{}, seed {}: {:.1f} s simulated, run is {}\n", name, seed, simulated_s, phase);
  text += fmt::format("  throughput   {} tokens, {:.1f} % of the ideal {:.0f}\n", tokens,
                      100 * throughput_share, ideal_tokens);
  text += fmt::format(
      "  microbatches {} done, {} open, {} lost, {} counted twice; {} leases issued again\n",
      microbatches_done, microbatches_open, microbatches_lost, microbatches_double_counted,
      leases_reissued);
  text += fmt::format(
      "  faults       {}; re-route p50 {:.0f} ms, p99 {:.0f} ms, most {:.0f} ms of {}\n", faults,
      reroute_ms_p50, reroute_ms_p99, reroute_ms_max, reroutes);
  for (const Reroutes& kind : reroutes_by_fault) {
    text += fmt::format("    {:<10} re-route p50 {:.0f} ms, p99 {:.0f} ms, most {:.0f} ms of {}\n", kind.kind,
                        kind.ms_p50, kind.ms_p99, kind.ms_max, kind.count);
  }
  text += fmt::format(
      "  redone       {:.2f} % of all compute by the living, {:.2f} % for the dead; {} counted "
      "gradients died "
      "with their miners\n",
      100 * redone_share, 100 * redone_dead_share, gradients_lost);
  text += fmt::format(
      "  merges       {} done, {} aborted, {} shards computed again; replicas identical: {}\n",
      merges, merges_aborted, shards_recomputed, replicas_identical ? "yes" : "NO");
  text += fmt::format("  trace        {} lines, SHA-256 {}\n", trace_lines, trace_sha256);
  if (!problem.empty()) text += fmt::format("  PROBLEM      {}\n", problem);
  return text;
}

std::string Result::to_json() const {
  nlohmann::ordered_json json = {
      {"name", name},
      {"seed", seed},
      {"simulated_s", simulated_s},
      {"phase", phase},
      {"tokens", tokens},
      {"ideal_tokens", ideal_tokens},
      {"throughput_share", throughput_share},
      {"reroute_ms_p50", reroute_ms_p50},
      {"reroute_ms_p99", reroute_ms_p99},
      {"reroute_ms_max", reroute_ms_max},
      {"reroutes", reroutes},
      {"microbatches_done", microbatches_done},
      {"microbatches_open", microbatches_open},
      {"microbatches_lost", microbatches_lost},
      {"microbatches_double_counted", microbatches_double_counted},
      {"gradients_refused", gradients_refused},
      {"gradients_lost", gradients_lost},
      {"leases_reissued", leases_reissued},
      {"redone_share", redone_share},
      {"redone_dead_share", redone_dead_share},
      {"faults", faults},
      {"orders_obeyed", orders_obeyed},
      {"moves", moves},
      {"merges", merges},
      {"merges_aborted", merges_aborted},
      {"shards_recomputed", shards_recomputed},
      {"shards", shards},
      {"shards_lost_without_rescue", shards_lost_without_rescue},
      {"shards_lost", shards_lost},
      {"stage_values", stage_values},
      {"bytes_up_per_miner", bytes_up_per_miner},
      {"bytes_down_per_miner", bytes_down_per_miner},
      {"accused", accused.size()},
      {"accused_nodes", accused},
      {"falsely_accused", falsely_accused},
      {"falsely_voided", falsely_voided},
      {"replica_mismatches", replica_mismatches},
      {"replicas_identical", replicas_identical},
      {"state_is_replay", state_is_replay},
      {"events", events},
      {"journal_entries", journal_entries},
      {"trace_lines", trace_lines},
      {"trace_sha256", trace_sha256},
      {"problem", problem},
  };
  nlohmann::ordered_json kinds = nlohmann::ordered_json::object();
  for (const Reroutes& kind : reroutes_by_fault) {
    kinds[kind.kind] = {{"count", kind.count},
                        {"ms_p50", kind.ms_p50},
                        {"ms_p99", kind.ms_p99},
                        {"ms_max", kind.ms_max}};
  }
  json["reroutes_by_fault"] = std::move(kinds);
  nlohmann::ordered_json timeline = nlohmann::ordered_json::array();
  for (const Sample& sample : samples) {
    timeline.push_back({{"at_s", sample.at_s},
                        {"tokens_per_s", sample.tokens_per_s},
                        {"ideal_tokens_per_s", sample.ideal_tokens_per_s}});
  }
  json["timeline"] = std::move(timeline);
  nlohmann::ordered_json marks = nlohmann::ordered_json::array();
  for (const FaultMark& mark : fault_marks) {
    marks.push_back({{"at_s", mark.at_s}, {"kind", mark.kind}, {"victims", mark.victims}});
  }
  json["fault_marks"] = std::move(marks);
  return json.dump(2) + "\n";
}

}  // namespace tessera::sim
