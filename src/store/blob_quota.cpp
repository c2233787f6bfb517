#include "tessera/store/blob_quota.h"

#include <algorithm>

namespace tessera::store {

// By whole milliseconds' worth: what is less than a byte stays for the next time.
void BlobQuota::refill(Account& account, TimeMs now) const {
  if (account.balance >= account.base) {
    account.at = now;
    return;
  }
  const TimeMs passed = std::min(now - account.at, refill_ms_);
  const auto more = static_cast<uint64_t>(static_cast<double>(account.base) * static_cast<double>(passed) / static_cast<double>(refill_ms_));
  if (more == 0) return;
  account.balance = std::min(account.base, account.balance + more);
  account.at = now;
}

void BlobQuota::open(const NodeId& key, uint64_t base_bytes, uint64_t most_bytes, TimeMs now) {
  std::lock_guard lock(mutex_);
  const auto [account, is_new] = accounts_.try_emplace(key, Account{.base = base_bytes, .most = most_bytes, .balance = base_bytes, .at = now});
  account->second.base = base_bytes;
  account->second.most = most_bytes;
  account->second.balance = std::min(account->second.balance, most_bytes);
}

void BlobQuota::close(const NodeId& key) {
  std::lock_guard lock(mutex_);
  accounts_.erase(key);
}

bool BlobQuota::is_open(const NodeId& key) const {
  std::lock_guard lock(mutex_);
  return accounts_.count(key) > 0;
}

void BlobQuota::credit(const NodeId& key, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  const auto account = accounts_.find(key);
  if (account == accounts_.end()) return;
  account->second.balance = std::min(account->second.most, account->second.balance + bytes);
}

Status BlobQuota::take(const NodeId& key, uint64_t content_bytes, TimeMs now) {
  const uint64_t bytes = content_bytes + kBlobOverheadBytes;
  std::lock_guard lock(mutex_);
  const auto found = accounts_.find(key);
  if (found == accounts_.end()) {
    return error(absl::StatusCode::kPermissionDenied, "only registered miners store blobs here; register first");
  }
  Account& account = found->second;
  refill(account, now);
  if (bytes > account.balance) {
    return error(absl::StatusCode::kResourceExhausted,
                 "this key has stored {} bytes that the run has not asked for, and may store {} more now: put what the run "
                 "asks for, or wait (the whole share comes back in {} s), or let the orchestrator's operator raise "
                 "blob_share_bytes",
                 account.base - std::min(account.base, account.balance), account.balance, refill_ms_ / 1000);
  }
  account.balance -= bytes;
  return ok_status();
}

void BlobQuota::give_back(const NodeId& key, uint64_t content_bytes) {
  credit(key, content_bytes + kBlobOverheadBytes);
}

}  // namespace tessera::store
