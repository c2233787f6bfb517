// trace: one microbatch's way through the swarm, from the ledger.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "tessera/core/microbatch_trace.h"

namespace tessera::apps {
namespace {

struct Flags {
  LedgerFlags ledger;
  MicrobatchId microbatch = 0;
  bool json = false;
};

std::string name_of_miner(MinerIndex miner) { return miner == kNoMiner ? "-" : fmt::format("{}", miner); }

std::string list_of(const std::vector<MinerIndex>& miners) {
  std::string list;
  for (const MinerIndex miner : miners) list += (list.empty() ? "" : " ") + name_of_miner(miner);
  return list;
}

void print_hop(const core::TracedHop& hop) {
  const core::Receipt& receipt = hop.receipt;
  fmt::print("  attempt {} stage {}: miner {} ({}), from {}, to {}, epoch {}, weights {}, step {}.{}{}{}\n", receipt.attempt,
             receipt.stage, receipt.miner, hop.node.brief(), name_of_miner(receipt.upstream), name_of_miner(receipt.downstream),
             hop.epoch, receipt.weight_version, receipt.local_step, receipt.order,
             receipt.accumulated ? "" : ", not accumulated", receipt.repaired ? ", repaired" : "");
  fmt::print("    entry {} at {}: forward {:.1f} ms, backward {:.1f} ms{}; {}: {}{}\n", hop.entry, hop.unix_ms,
             receipt.forward_ms, receipt.backward_ms, receipt.loss != 0 ? fmt::format(", loss {:.4f}", receipt.loss) : "",
             hop.outcome, hop.why, hop.voided ? "; void by a verdict" : "");
  fmt::print("    activation {} -> {}, gradient {} -> {}\n", receipt.input_hash.brief(), receipt.output_hash.brief(),
             receipt.gradient_in_hash.brief(), receipt.gradient_out_hash.brief());
}

void print(const core::TracedMicrobatch& trace) {
  fmt::print("microbatch {}: {}{}\n", trace.microbatch, trace.complete ? "complete" : "not complete",
             trace.loss ? fmt::format(", loss {:.4f}", *trace.loss) : "");
  for (const core::TracedLease& lease : trace.leases) {
    fmt::print("  attempt {} {} miner {} (entry {} at {}), proposed {}{}\n", lease.attempt,
               lease.repair ? "handed to" : "leased to", lease.head, lease.entry, lease.unix_ms, list_of(lease.pathway),
               lease.random_pathway ? ", at random" : "");
  }
  if (!trace.leases_known) fmt::print("  leases are sealed: --key shows them; random pathways are public after a merge\n");
  for (const core::TracedHop& hop : trace.hops) print_hop(hop);
  for (const core::TracedMerge& merge : trace.merges) {
    fmt::print("  stage {}: in the merge to epoch {} (entry {} at {})\n", merge.stage, merge.target, merge.entry, merge.unix_ms);
  }
  for (const core::TracedVerdict& traced : trace.verdicts) {
    fmt::print("  verdict of entry {} on miner {}, stage {}, epoch {}: {} {}: {}\n", traced.entry, traced.verdict.miner,
               traced.verdict.stage, traced.verdict.epoch, traced.about, traced.verdict.passed ? "passed" : "failed",
               traced.verdict.reason);
  }
}

int trace(const Flags& flags) {
  core::MicrobatchTrace reader(flags.microbatch, !flags.ledger.key.empty());
  const Status status = read_ledger(flags.ledger, [&](const core::LedgerEntry& entry) {
    reader.read(entry);
    return ok_status();
  });
  if (!status.ok()) return fail("tesseractl", status);
  const core::TracedMicrobatch traced = reader.finish();
  if (flags.json) {
    fmt::print("{}\n", to_json(traced));
  } else {
    print(traced);
  }
  if (!traced.hops.empty() || !traced.leases.empty()) return kExitOk;
  return fail("tesseractl", not_found("microbatch {} is not in this ledger: no receipt names it (yet)", flags.microbatch));
}

}  // namespace

void add_trace_commands(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("trace", "One microbatch's way through the swarm, with everything that was said about it");
  const auto flags = std::make_shared<Flags>();
  command->add_option("microbatch", flags->microbatch, "Its number")->required();
  add_ledger_flags(command, &flags->ledger);
  command->add_flag("--json", flags->json, "As JSON");
  command->callback([&action, flags] { action = [flags] { return trace(*flags); }; });
}

}  // namespace tessera::apps
