#include "tessera/store/ledger_reader.h"

#include <utility>

namespace tessera::store {

StatusOr<std::unique_ptr<LedgerReader>> LedgerReader::open(const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(auto journal, open_journal(path, true));
  return std::unique_ptr<LedgerReader>(new LedgerReader(std::move(journal)));
}

StatusOr<ports::LedgerPage> LedgerReader::read(uint64_t after, uint64_t offset) {
  std::lock_guard lock(mutex_);
  ports::LedgerPage page;
  page.last_sequence = journal_->last_sequence();
  if (after > page.last_sequence) {
    return error(absl::StatusCode::kOutOfRange, "the ledger has {} entries, not {}", page.last_sequence, after);
  }
  TESSERA_ASSIGN_OR_RETURN(page.chain_before, journal_->chain_at(after));
  size_t bytes = 0;
  bool full = false;
  const Status status = journal_->replay(after, [&](const JournalRecord& record) -> Status {
    const bool first = page.records.empty();
    if (first && offset > record.body.size()) {
      return error(absl::StatusCode::kOutOfRange, "entry {} has {} bytes", record.sequence, record.body.size());
    }
    full = !first && (bytes + record.body.size() > kPageBytes || page.records.size() == kPageRecords);
    if (full) return error(absl::StatusCode::kCancelled, "the page is full");
    JournalRecord copy{record.sequence, record.unix_ms, record.kind, first ? record.body.substr(offset, kPageBytes) : record.body, {}};
    if (first) page.body_bytes = record.body.size();
    full = first && offset + copy.body.size() < record.body.size();
    bytes += copy.body.size();
    page.records.push_back(std::move(copy));
    return full ? error(absl::StatusCode::kCancelled, "the page is full") : ok_status();
  });
  if (!status.ok() && !full) return status;
  return page;
}

}  // namespace tessera::store
