// How many bytes each key may still put into the blob store. A key begins with a base, has more for what the run asks of it,
// and gets what it used of the base back over the time after which the store removes blobs that nobody names. So one key can
// hold no more than its base of what nobody asked for, and what was asked for fits.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "tessera/base/clock.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::store {

inline constexpr uint64_t kBlobOverheadBytes = 256;  // charged for each blob beside its content: its place in a folder

class BlobQuota {
 public:
  // `refill_ms`: in which a used-up base is whole again.
  explicit BlobQuota(TimeMs refill_ms) : refill_ms_(refill_ms) {}

  // The key may put blobs: `base_bytes`, and never more than `most_bytes` at once. One that has an account keeps its balance.
  void open(const NodeId& key, uint64_t base_bytes, uint64_t most_bytes, TimeMs now);
  void close(const NodeId& key);
  bool is_open(const NodeId& key) const;
  // The run asked the key for so much.
  void credit(const NodeId& key, uint64_t bytes);
  // PERMISSION_DENIED without an account; RESOURCE_EXHAUSTED, and nothing is taken, if the balance is too small. `now` is of a
  // clock that only goes on.
  Status take(const NodeId& key, uint64_t content_bytes, TimeMs now);
  // It was there already, or could not be stored.
  void give_back(const NodeId& key, uint64_t content_bytes);

 private:
  struct Account {
    uint64_t base = 0;
    uint64_t most = 0;
    uint64_t balance = 0;
    TimeMs at = 0;  // of the balance
  };
  void refill(Account& account, TimeMs now) const;

  const TimeMs refill_ms_;
  mutable std::mutex mutex_;
  std::map<NodeId, Account> accounts_;
};

}  // namespace tessera::store
