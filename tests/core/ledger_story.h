// A ledger written by hand: receipts of microbatches that went along given pathways, every hash as honest miners have it.
#pragma once

#include <fmt/format.h>

#include <map>
#include <vector>

#include "support/small_run.h"
#include "tessera/base/crypto.h"
#include "tessera/core/ledger_entry.h"

namespace tessera::test {

class LedgerStory {
 public:
  explicit LedgerStory(uint32_t stages, uint32_t miners_per_stage = 2) {
    core::RunSpec spec = small_spec(stages, miners_per_stage);
    spec.training.steps = 1'000'000;
    core::RunCreated created;
    created.run_id = "0123456789abcdef";
    created.run_spec = encode(spec);
    created.data_plan = encode(small_data());
    created.stage_values.assign(stages, 100);
    add(created);
  }

  void pass(TimeMs ms) { now_ += ms; }
  TimeMs now() const { return now_; }
  void add(core::Event event) { entries.push_back({entries.size() + 1, now_, std::move(event)}); }

  // Receipts of an attempt, not in the ledger yet: change them, then report them.
  std::vector<core::Receipt> receipts(MicrobatchId microbatch, const std::vector<MinerIndex>& pathway, float loss = 4,
                                      uint32_t attempt = 0, Epoch epoch = 0) const {
    const auto hash = [&](const char* what, size_t boundary) {
      return digest_of(fmt::format("{} {} {} {}", what, microbatch, attempt, boundary));
    };
    std::vector<core::Receipt> receipts;
    for (size_t s = 0; s < pathway.size(); ++s) {
      core::Receipt receipt;
      receipt.incarnation = 1;
      receipt.miner = pathway[s];
      receipt.stage = static_cast<StageIndex>(s);
      receipt.microbatch = microbatch;
      receipt.attempt = attempt;
      receipt.epoch = epoch;
      receipt.accumulated = true;
      if (s > 0) {
        receipt.upstream = pathway[s - 1];
        receipt.input_hash = hash("activation", s);
        receipt.gradient_out_hash = hash("gradient", s);
      }
      if (s + 1 < pathway.size()) {
        receipt.downstream = pathway[s + 1];
        receipt.output_hash = hash("activation", s + 1);
        receipt.gradient_in_hash = hash("gradient", s + 1);
      } else {
        receipt.loss = loss;
      }
      receipts.push_back(receipt);
    }
    return receipts;
  }
  void report(core::Receipt receipt) {
    receipt.sequence = ++sequences_[receipt.miner];
    add(core::ReceiptsArrived{receipt.miner, {receipt}});
  }
  // The miner says that it holds its stage's state of the epoch.
  void hold(MinerIndex miner, Epoch epoch) { add(core::StateHeld{miner, {.epoch = epoch}}); }
  void upload(MinerIndex miner, Epoch target, uint64_t snapshot_step) {
    add(core::UploadCommitted{miner, {.target = target, .object = {}, .snapshot_step = snapshot_step}});
  }
  // The stage's merge of the participants' uploads is complete.
  void merge(StageIndex stage, Epoch target, const std::vector<MinerIndex>& participants) {
    core::PairingsPublished published{.stage = stage, .target = target, .pairings = {}};
    for (const MinerIndex miner : participants) {
      published.pairings.push_back({.shard = miner, .first_block = 0, .block_count = 1, .owner_a = participants[0], .owner_b = miner});
    }
    add(published);
  }
  // The tail's first, as it happens.
  void report(const std::vector<core::Receipt>& receipts) {
    for (auto receipt = receipts.rbegin(); receipt != receipts.rend(); ++receipt) report(*receipt);
  }
  void publish(MicrobatchId microbatch, const std::vector<MinerIndex>& pathway, uint32_t attempt = 0) {
    add(core::RandomLeasesPublished{{{microbatch, attempt, pathway}}});
  }
  void judge(MinerIndex miner, StageIndex stage, Epoch epoch, core::VerdictKind kind, bool passed) {
    add(core::VerdictRecorded{{.miner = miner, .stage = stage, .epoch = epoch, .kind = kind, .passed = passed,
                               .reason = "as the story has it", .evidence = {}}});
  }

  std::vector<core::LedgerEntry> entries;

 private:
  TimeMs now_ = 1'000'000'000;
  std::map<MinerIndex, uint64_t> sequences_;
};

}  // namespace tessera::test
