#include "ctl/ledger_files.h"

#include <fmt/format.h>

#include <filesystem>

namespace tessera::apps {

void add_ledger_flags(CLI::App* command, LedgerFlags* flags) {
  command->add_option("--journal", flags->journal, "The ledger: journal.sqlite, or the orchestrator's folder; it may be running")
      ->required()->envname("TESSERA_JOURNAL");
  command->add_option("--key", flags->key, "ledger.key, to see what is still sealed; without it: the public view")
      ->check(CLI::ExistingFile);
}

StatusOr<OpenLedger> open_ledger(const LedgerFlags& flags) {
  std::optional<SealKey> key;
  if (!flags.key.empty()) {
    TESSERA_ASSIGN_OR_RETURN(key, SealKey::load(flags.key));
  }
  OpenLedger ledger;
  ledger.path = flags.journal;
  if (std::filesystem::is_directory(ledger.path)) ledger.path += "/journal.sqlite";
  ledger.seal = store::LedgerSeal(std::move(key));
  TESSERA_ASSIGN_OR_RETURN(ledger.journal, store::open_journal(ledger.path, true));
  return ledger;
}

Status learn_published_keys(OpenLedger* ledger) {
  return ledger->journal->replay(0, [&](const store::JournalRecord& record) {
    ledger->seal.learn(record);
    return ok_status();
  });
}

StatusOr<ReadableEntry> readable(const store::LedgerSeal& seal, const store::JournalRecord& record) {
  store::JournalRecord opened = record;
  TESSERA_ASSIGN_OR_RETURN(const auto how, seal.open(&opened));
  ReadableEntry entry;
  if (record.kind == ports::kSnapshotKind) {
    entry.json = fmt::format("{{\"sealed\":{},\"bytes\":{}}}", how != store::LedgerSeal::Opened::kPlain, record.body.size());
  } else if (how == store::LedgerSeal::Opened::kStillSealed && core::is_sealed_kind(record.kind)) {
    entry.json = fmt::format("{{\"sealed\":true,\"bytes\":{}}}", record.body.size());
  } else if ((entry.event = core::decode_event(opened.kind, opened.body))) {
    entry.json = core::event_json(*entry.event);
  } else {
    return data_loss("entry {} ('{}') can't be read by this version; use the version that wrote it", record.sequence,
                     record.kind);
  }
  return entry;
}

Status read_ledger(const LedgerFlags& flags, const std::function<Status(const core::LedgerEntry&)>& visit) {
  TESSERA_ASSIGN_OR_RETURN(const OpenLedger ledger, open_ledger(flags));
  return ledger.journal->replay(0, [&](const store::JournalRecord& record) -> Status {
    if (record.kind == ports::kSnapshotKind) return ok_status();
    store::JournalRecord opened = record;
    TESSERA_ASSIGN_OR_RETURN(const auto how, ledger.seal.open(&opened));
    if (how == store::LedgerSeal::Opened::kStillSealed && core::is_sealed_kind(record.kind)) return ok_status();
    std::optional<core::Event> event = core::decode_event(opened.kind, opened.body);
    if (!event) {
      return data_loss("{}: entry {} ('{}') can't be read by this version; use the version that wrote it", ledger.path,
                       record.sequence, record.kind);
    }
    return visit({record.sequence, record.unix_ms, *std::move(event)});
  });
}

}  // namespace tessera::apps
