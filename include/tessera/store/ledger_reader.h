// The public ledger in pages, read beside its writer. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

#include "tessera/ports/ledger_page.h"
#include "tessera/store/journal.h"

namespace tessera::store {

class LedgerReader {
 public:
  static constexpr size_t kPageBytes = 1u << 20;  // of bodies; a larger one is cut
  static constexpr size_t kPageRecords = 4096;

  // As open_journal() does, for reading.
  static StatusOr<std::unique_ptr<LedgerReader>> open(const std::string& path);

  // Entries with sequence > after, as many as fit a page; of the first the body from `offset` on.
  // OUT_OF_RANGE: there is no entry `after`, or its successor's body is shorter. DATA_LOSS: as replay().
  StatusOr<ports::LedgerPage> read(uint64_t after, uint64_t offset);

 private:
  explicit LedgerReader(std::unique_ptr<Journal> journal) : journal_(std::move(journal)) {}

  std::mutex mutex_;
  std::unique_ptr<Journal> journal_;
};

}  // namespace tessera::store
