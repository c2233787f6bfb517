// A part of the public ledger on its way to somebody who keeps a copy (net's ReadLedger).
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/ports/journal.h"

namespace tessera::ports {

// Entries from one number on, as they are chained: sealed ones are sealed. `json` is empty: it can be made from the body.
struct LedgerPage {
  Digest chain_before;                 // chain value of the entry before the first; zeros before entry 1
  uint64_t last_sequence = 0;          // of the ledger, when this was read
  std::vector<JournalRecord> records;  // none: there are no more
  // Of the first record. Its body begins at the offset that was asked for; unless it ends at body_bytes, it is alone and the rest
  // has to be asked for.
  uint64_t body_bytes = 0;
};

}  // namespace tessera::ports
