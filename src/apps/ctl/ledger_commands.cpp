// ledger verify, ledger export: the journal as everybody may read it.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "ctl/ledger_pull.h"
#include "tessera/base/files.h"

namespace tessera::apps {
namespace {

struct VerifyFlags {
  LedgerFlags ledger;
  std::string expect;   // a chain value kept elsewhere
  bool json = false;
};

struct ExportFlags {
  LedgerFlags ledger;
  std::string format = "jsonl";
  std::string out;
  std::vector<std::string> kinds;
  uint64_t since = 1;
};

// The chain once more, entry by entry, so that the first broken one is known by its number.
int verify(const VerifyFlags& flags) {
  uint64_t entries = 0;
  bool expected_seen = flags.expect.empty();
  Digest chain;
  Status status = ok_status();
  StatusOr<OpenLedger> ledger = open_ledger(flags.ledger);
  if (ledger.ok()) {
    status = (*ledger).journal->replay(0, [&](const store::JournalRecord& record) {
      chain = store::next_chain(chain, record, record.sequence);
      ++entries;
      expected_seen = expected_seen || chain.hex() == flags.expect;
      return ok_status();
    });
  } else {
    status = ledger.status();
  }
  const bool damaged = absl::IsDataLoss(status) && ledger.ok();
  if (status.ok() && !expected_seen) {
    status = data_loss("no entry has the chain value {}: this is not the ledger it was taken from, or a later part was rewritten",
                       flags.expect);
  }
  if (flags.json) {
    nlohmann::json value = {{"ok", status.ok()}, {"entries", entries}, {"chain", chain.hex()}};
    if (!status.ok()) value["error"] = message_of(status);
    if (damaged) value["first_broken"] = entries + 1;
    fmt::print("{}\n", value.dump());
  } else if (status.ok()) {
    fmt::print("{} entries, the chain is whole; keep its last value elsewhere to notice a rewritten ledger:\n{}\n", entries,
               chain.hex());
  }
  if (status.ok()) return kExitOk;
  return fail("tesseractl", damaged ? annotate(status, fmt::format("entry {} is the first broken one", entries + 1)) : status);
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

// Receipts get a row each, with a column for each of their fields; the header is that of the first.
void write_receipt_rows(std::ostream& out, const store::JournalRecord& record, const core::ReceiptsArrived& arrived,
                        bool* header) {
  for (const core::Receipt& receipt : arrived.receipts) {
    const auto fields = nlohmann::ordered_json::parse(to_json(receipt), nullptr, false);
    if (!*header) {
      out << "entry,entry_unix_ms";
      for (const auto& [name, value] : fields.items()) out << ',' << name;
      out << '\n';
      *header = true;
    }
    out << record.sequence << ',' << record.unix_ms;
    for (const auto& [name, value] : fields.items()) {
      out << ',' << csv_field(value.is_string() ? value.get<std::string>() : value.dump());
    }
    out << '\n';
  }
}

Status write_entries(const ExportFlags& flags, std::ostream& out) {
  TESSERA_ASSIGN_OR_RETURN(OpenLedger ledger, open_ledger(flags.ledger));
  TESSERA_RETURN_IF_ERROR(learn_published_keys(&ledger));
  const bool csv = flags.format == "csv";
  const bool receipts_only = flags.kinds.size() == 1 && flags.kinds[0] == core::ReceiptsArrived::kName;
  bool header = false;
  if (csv && !receipts_only) out << "sequence,unix_ms,kind,event\n";
  return ledger.journal->replay(flags.since - 1, [&](const store::JournalRecord& record) -> Status {
    if (!flags.kinds.empty() && std::find(flags.kinds.begin(), flags.kinds.end(), record.kind) == flags.kinds.end()) {
      return ok_status();
    }
    TESSERA_ASSIGN_OR_RETURN(const ReadableEntry entry, readable(ledger.seal, record));
    if (!csv) {
      out << fmt::format("{{\"sequence\":{},\"unix_ms\":{},\"kind\":\"{}\",\"event\":{}}}\n", record.sequence,
                         record.unix_ms, record.kind, entry.json);
    } else if (receipts_only) {
      write_receipt_rows(out, record, std::get<core::ReceiptsArrived>(*entry.event), &header);
    } else {
      out << record.sequence << ',' << record.unix_ms << ',' << record.kind << ',' << csv_field(entry.json) << '\n';
    }
    if (!out) return error(absl::StatusCode::kResourceExhausted, "writing failed: is the disk full, or the reader gone?");
    return ok_status();
  });
}

int export_entries(const ExportFlags& flags) {
  std::ofstream file;
  if (!flags.out.empty()) {
    file.open(flags.out, std::ios::binary | std::ios::trunc);
    if (!file) return fail("tesseractl", failed_precondition("{}: can't be written", flags.out));
  }
  std::ostream& out = flags.out.empty() ? std::cout : file;
  Status status = write_entries(flags, out);
  out.flush();
  if (status.ok() && !out) status = failed_precondition("{}: writing failed", flags.out.empty() ? "stdout" : flags.out);
  return status.ok() ? kExitOk : fail("tesseractl", status);
}

}  // namespace

void add_ledger_commands(CLI::App& app, Action& action) {
  CLI::App* ledger = app.add_subcommand("ledger", "The run's ledger: the orchestrator's journal");
  ledger->require_subcommand(1);
  CLI::App* verified = ledger->add_subcommand("verify", "Check the hash chain; names the first broken entry");
  const auto verify_flags = std::make_shared<VerifyFlags>();
  add_ledger_flags(verified, &verify_flags->ledger);
  verified->add_option("--expect", verify_flags->expect, "A chain value of before: it must occur in this ledger");
  verified->add_flag("--json", verify_flags->json, "As JSON");
  verified->callback([&action, verify_flags] { action = [verify_flags] { return verify(*verify_flags); }; });

  CLI::App* exported = ledger->add_subcommand("export", "Entries as JSON lines or CSV, one after the other");
  const auto export_flags = std::make_shared<ExportFlags>();
  add_ledger_flags(exported, &export_flags->ledger);
  exported->add_option("--format", export_flags->format, "csv with the kind 'receipts' alone: a row for each receipt")
      ->check(CLI::IsMember({"jsonl", "csv"}))->capture_default_str();
  exported->add_option("--kind", export_flags->kinds, "Only entries of this kind; may be repeated")->allow_extra_args(false);
  exported->add_option("--since", export_flags->since, "From the entry with this number on")->check(CLI::PositiveNumber);
  exported->add_option("--out", export_flags->out, "File; without it: stdout");
  exported->callback([&action, export_flags] { action = [export_flags] { return export_entries(*export_flags); }; });
  add_ledger_pull(ledger, action);
}

}  // namespace tessera::apps
