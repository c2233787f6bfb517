// The ledger's sealed view and its public one (docs/formats/journal.md#sealed): what must stay secret for a while is encrypted
// in the journal. Sealed are the run's secret (a field of run_created), snapshots of the state, and events with kSealed. Each
// kind and id has a key of its own, which a secret_unsealed entry publishes.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tessera/base/sealing.h"
#include "tessera/base/status.h"
#include "tessera/store/journal.h"

namespace tessera::store {

// Not thread-safe.
class LedgerSeal {
 public:
  // Without a key it opens what was published, and seals nothing.
  explicit LedgerSeal(std::optional<SealKey> key) : key_(std::move(key)) {}

  // A record as it goes into the journal. Fills in the key of a secret_unsealed.
  Status seal(JournalRecord* record) const;

  enum class Opened { kPlain, kOpened, kStillSealed };
  // A record from the journal as it was given to seal(). kStillSealed: unchanged, there is no key for it. DATA_LOSS: the key
  // is not the one it was sealed with.
  StatusOr<Opened> open(JournalRecord* record) const;
  // A key that was published.
  void learn(const JournalRecord& record);

 private:
  std::optional<Digest> key_of(const std::string& kind, uint64_t id) const;
  StatusOr<Opened> open_secret_of_run(JournalRecord* record) const;

  std::optional<SealKey> key_;
  std::map<std::pair<std::string, uint64_t>, Digest> published_;
};

// A journal that seals what it is given and opens what it reads: the orchestrator's. Takes over `inner`.
std::unique_ptr<Journal> sealed_journal(std::unique_ptr<Journal> inner, SealKey key);

}  // namespace tessera::store
