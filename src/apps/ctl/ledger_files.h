// Reading a run's ledger from its file, as everybody may (the public view) or with the key it is sealed with.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/ledger_entry.h"
#include "tessera/store/ledger_seal.h"

namespace tessera::apps {

struct LedgerFlags {
  std::string journal;  // the file, or the orchestrator's folder
  std::string key;      // ledger.key; empty: the public view
};

void add_ledger_flags(CLI::App* command, LedgerFlags* flags);

// A journal opened for reading, with what opens its sealed entries.
struct OpenLedger {
  std::string path;
  std::unique_ptr<store::Journal> journal;
  store::LedgerSeal seal{std::nullopt};
};
StatusOr<OpenLedger> open_ledger(const LedgerFlags& flags);
// Keys that the ledger itself has published; reads it once.
Status learn_published_keys(OpenLedger* ledger);

// What an entry is for readers: of its checked body, not of the JSON beside it, which is not in the chain.
struct ReadableEntry {
  std::optional<core::Event> event;  // none of a snapshot and of what is sealed
  std::string json;
};
StatusOr<ReadableEntry> readable(const store::LedgerSeal& seal, const store::JournalRecord& record);

// Every public event, with the key every event, in order, the hash chain checked on the way. Snapshots are passed over.
Status read_ledger(const LedgerFlags& flags, const std::function<Status(const core::LedgerEntry&)>& visit);

}  // namespace tessera::apps
