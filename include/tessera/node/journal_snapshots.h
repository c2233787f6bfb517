// Snapshots of the orchestrator's state in its own journal (docs/formats/journal.md), so that a restart replays a bounded
// number of entries. A snapshot is taken between two commits and written in parts, one with each of the next commits: no
// answer waits for more than the encoding and one part.
//
// Not thread-safe: the control thread's.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"
#include "tessera/ports/journal.h"

namespace tessera::node {

class JournalSnapshots {
 public:
  static constexpr size_t kPartBytes = 256u << 10;

  // One after so many entries; 0: none.
  JournalSnapshots(ports::Journal& journal, uint64_t every) : journal_(journal), every_(every) {}

  // Loads the newest snapshot that is whole and of this version, and returns the sequence of the last entry in it: the
  // replay goes on after that. 0: there is none; the replay begins at the beginning.
  StatusOr<uint64_t> restore(core::Orchestrator* core);

  // After a commit: takes a snapshot if one is due.
  void take_if_due(const core::Orchestrator& core);
  // A snapshot is taken and not yet written to its end.
  bool has_parts() const { return !unwritten_.empty(); }
  // The next part still to be written, if any, becomes an entry of this batch.
  void add_part(int64_t unix_ms, std::vector<ports::JournalRecord>* batch);

 private:
  struct Part {
    uint64_t after = 0;   // sequence of the last entry in the snapshot
    uint32_t part = 0;
    uint32_t parts = 0;
    std::string bytes;
    template <class A>
    void fields(A& a) {
      a("after", after)("part", part)("parts", parts)("bytes", bytes);
    }
  };
  // The bytes of the newest whole snapshot whose last part is not behind `through`; sets `through` to before it.
  StatusOr<std::string> read(uint64_t* through, uint64_t* after);

  ports::Journal& journal_;
  const uint64_t every_;
  uint64_t taken_at_ = 0;  // last_sequence() then
  std::deque<Part> unwritten_;
};

}  // namespace tessera::node
