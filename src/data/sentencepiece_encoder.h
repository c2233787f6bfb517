// Normalised text to piece ids, as SentencePiece's unigram and BPE models define it. Immutable
// after construction, so safe to share.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/piece_trie.h"
#include "data/sentencepiece_model.h"

namespace tessera::data {

class SentencePieceEncoder {
 public:
  // `model` outlives it and does not move.
  explicit SentencePieceEncoder(const SentencePieceModel& model);

  struct Match {
    std::string_view text;  // of the normalised text
    uint32_t id = 0;
  };
  // Segments all of `normalized`; what no piece matches is the unknown id, character by character.
  std::vector<Match> segment(std::string_view normalized) const;
  // User-defined pieces: matched before everything else.
  const PieceTrie& user_defined() const { return user_defined_; }

 private:
  std::vector<Match> segment_unigram(std::string_view text) const;
  std::vector<Match> segment_bpe(std::string_view text) const;

  const SentencePieceModel& model_;
  PieceTrie user_defined_;
  // Unigram: all pieces that match text.
  PieceTrie pieces_;
  float unknown_score_ = 0;
  float largest_score_ = 0;
  // BPE: the same.
  std::unordered_map<std::string_view, uint32_t> ids_;
};

}  // namespace tessera::data
