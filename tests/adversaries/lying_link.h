// A miner's word to the orchestrator, with receipts for work that it did not do between the true ones.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"
#include "tessera/ports/links.h"

namespace tessera::test {

enum class Lie {
  kInventedReceipts,  // of microbatches that it never had
  kReplayedReceipts,  // the same work twice, under another number
  kNotWhole,          // true receipts, but no segment can be run again
  kWrongEpoch,        // true receipts, but segments say that they are of epoch 99
  kCalledRepaired,    // true receipts, but all of them say that the work was repaired
};

// After a share of the true receipts comes a false one, signed like them. Numbers are without gaps on either side.
// Thread-safe as the link that it wraps.
class LyingLink final : public ports::OrchestratorLink {
 public:
  LyingLink(ports::OrchestratorLink& link, const KeyPair& key, Lie lie, double share, uint64_t seed)
      : link_(link), key_(key), lie_(lie), share_(share), seed_(seed), shared_(std::make_shared<Shared>()) {}

  void register_miner(core::Registration registration, std::function<void(StatusOr<core::RegisterAnswer>)> done) override;
  void sync(core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) override;

 private:
  // Also used by callbacks that come late.
  struct Shared {
    std::mutex mutex;
    std::string run_id;
    std::deque<core::Receipt> unacknowledged;      // as sent
    std::map<uint64_t, uint64_t> true_number;      // by the number sent
    std::map<uint64_t, uint64_t> sent_as;          // by the true number
    uint64_t last_true = 0;
    uint64_t last_sent = 0;
  };
  bool lies_about(MicrobatchId microbatch) const;
  void lie_about(core::SegmentCommit& segment) const;
  void append(Shared& shared, core::Receipt receipt, bool is_true);

  ports::OrchestratorLink& link_;
  const KeyPair& key_;
  const Lie lie_;
  const double share_;
  const uint64_t seed_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace tessera::test
