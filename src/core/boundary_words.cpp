#include "tessera/core/boundary_words.h"

#include <algorithm>
#include <cstring>

#include "tessera/core/receipt_pair.h"

namespace tessera::core {
namespace {

constexpr size_t kWordsPerStage = 4;
constexpr size_t kMoreWords = 8;

uint64_t beginning_of(const Digest& digest) {
  uint64_t value = 0;
  std::memcpy(&value, digest.bytes.data(), sizeof(value));
  return value;
}

}  // namespace

bool BoundaryWords::confirm(const Word& below, const Word& above) {
  if (below.attempt != above.attempt || below.stage + 1 != above.stage) return false;
  const auto side = [](const Word& word, const Side& of) {
    return BoundarySide<uint64_t>{word.miner, of.neighbour, of.forward, of.backward, word.repaired};
  };
  return judge(side(below, below.above), side(above, above.below)) == PairWord::kConfirms;
}

bool BoundaryWords::is_confirmed(const Word& word, uint32_t stages) const {
  const auto with = [&](const auto& confirms) { return std::any_of(words_.begin(), words_.end(), confirms); };
  return (word.stage == 0 || with([&](const Word& other) { return confirm(other, word); })) &&
         (word.stage + 1 == stages || with([&](const Word& other) { return confirm(word, other); }));
}

std::vector<ConfirmedGradient> BoundaryWords::add(const Receipt& receipt, uint32_t stages) {
  for (const Word& word : words_) {
    if (word.stage == receipt.stage && word.miner == receipt.miner && word.attempt == receipt.attempt) return {};
  }
  if (words_.size() >= kWordsPerStage * stages + kMoreWords) return {};
  words_.push_back({.stage = receipt.stage,
                    .attempt = receipt.attempt,
                    .miner = receipt.miner,
                    .incarnation = receipt.incarnation,
                    .local_step = receipt.local_step,
                    .accumulated = receipt.accumulated,
                    .repaired = receipt.repaired,
                    .below = {receipt.upstream, beginning_of(receipt.input_hash), beginning_of(receipt.gradient_out_hash)},
                    .above = {receipt.downstream, beginning_of(receipt.output_hash), beginning_of(receipt.gradient_in_hash)}});
  std::vector<ConfirmedGradient> confirmed;
  for (const Word& word : words_) {
    const uint64_t bit = uint64_t{1} << word.stage;
    const bool beside = word.stage + 1 >= receipt.stage && word.stage <= receipt.stage + 1;
    if (!word.accumulated || !beside || (confirmed_stages_ & bit) != 0 || !is_confirmed(word, stages)) continue;
    confirmed_stages_ |= bit;
    confirmed.push_back({word.miner, word.incarnation, word.local_step});
  }
  return confirmed;
}

}  // namespace tessera::core
