#include "adversaries/lying_link.h"

#include <algorithm>
#include <utility>

namespace tessera::test {

void LyingLink::register_miner(core::Registration registration, std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  link_.register_miner(std::move(registration), [shared = shared_, done = std::move(done)](StatusOr<core::RegisterAnswer> answer) {
    if (answer.ok()) {
      std::lock_guard lock(shared->mutex);
      shared->run_id = answer->run_id;
    }
    done(std::move(answer));
  });
}

// Of two that use the same seed, both: what one invents the other confirms.
bool LyingLink::lies_about(MicrobatchId microbatch) const {
  return Prng(mix64(seed_ ^ mix64(microbatch))).uniform() < share_;
}

void LyingLink::lie_about(core::SegmentCommit& segment) const {
  if (Prng(mix64(seed_ ^ mix64(segment.number))).uniform() >= share_) return;
  if (lie_ == Lie::kNotWhole) segment.whole = false;
  if (lie_ == Lie::kWrongEpoch) segment.epoch = 99;
}

void LyingLink::append(Shared& shared, core::Receipt receipt, bool is_true) {
  const uint64_t number = ++shared.last_sent;
  if (is_true) {
    shared.last_true = receipt.sequence;
    shared.sent_as[receipt.sequence] = number;
  }
  shared.true_number[number] = shared.last_true;
  receipt.sequence = number;
  receipt.repaired |= lie_ == Lie::kCalledRepaired;
  receipt.signature = key_.sign(receipt.signed_bytes(shared.run_id));
  shared.unacknowledged.push_back(std::move(receipt));
}

void LyingLink::sync(core::SyncRequest request, std::function<void(StatusOr<core::SyncAnswer>)> done) {
  {
    std::lock_guard lock(shared_->mutex);
    Shared& shared = *shared_;
    for (const core::Receipt& receipt : request.receipts) {
      if (receipt.sequence <= shared.last_true) continue;
      append(shared, receipt, true);
      const bool invents = lie_ == Lie::kInventedReceipts || lie_ == Lie::kReplayedReceipts;
      if (!invents || !lies_about(receipt.microbatch)) continue;
      core::Receipt invented = receipt;
      if (lie_ == Lie::kInventedReceipts) {
        invented.microbatch = receipt.microbatch / 2;  // one of before, that others have done
        for (Digest* hash : {&invented.input_hash, &invented.output_hash, &invented.gradient_in_hash, &invented.gradient_out_hash}) {
          if (!hash->is_zero()) hash->bytes[0] ^= 0x55;
        }
      }
      append(shared, std::move(invented), false);
    }
    request.receipts.assign(shared.unacknowledged.begin(),
                            shared.unacknowledged.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(shared.unacknowledged.size(), core::kMaxReceiptsPerSync)));
    if (request.segment) lie_about(*request.segment);
    // Everything before the segment's first receipt was appended already, or is not yet known here: then it waits.
    if (request.segment && request.segment->first_receipt > 1) {
      const auto before = shared.sent_as.find(request.segment->first_receipt - 1);
      if (before == shared.sent_as.end()) {
        request.segment.reset();
      } else {
        const auto next = shared.sent_as.find(request.segment->first_receipt);
        request.segment->first_receipt = next == shared.sent_as.end() ? before->second + 1 : next->second;
      }
    }
  }
  link_.sync(std::move(request), [shared = shared_, done = std::move(done)](StatusOr<core::SyncAnswer> answer) {
    if (answer.ok() && answer->known) {
      std::lock_guard lock(shared->mutex);
      while (!shared->unacknowledged.empty() && shared->unacknowledged.front().sequence <= answer->receipts_acknowledged) {
        shared->unacknowledged.pop_front();
      }
      const auto known = shared->true_number.find(answer->receipts_acknowledged);
      answer->receipts_acknowledged = known == shared->true_number.end() ? 0 : known->second;
    }
    done(std::move(answer));
  });
}

}  // namespace tessera::test
