#include "data/sentencepiece_encoder.h"

#include <algorithm>
#include <cfloat>
#include <queue>

namespace tessera::data {
namespace {

using PieceKind = SentencePieceModel::PieceKind;
using Match = SentencePieceEncoder::Match;

constexpr float kUnknownPenalty = 10;  // below the worst piece

// Bytes that the first byte of a character announces, as far as `text` has them.
size_t announced_bytes(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t bytes = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(bytes, text.size());
}

// A symbol of the BPE algorithm: a stretch of text, in a doubly linked list of indices.
struct Symbol {
  std::string_view text;  // empty: merged into its left neighbour
  int64_t previous = -1;
  int64_t next = -1;
  bool fixed = false;  // a user-defined piece: never merged
};

struct Merge {
  float score = 0;
  int64_t left = 0;
  int64_t right = 0;
  size_t bytes = 0;  // of both at the time: other sizes mean that it is out of date
  // The best first: higher score, then further left.
  bool operator<(const Merge& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

}  // namespace

SentencePieceEncoder::SentencePieceEncoder(const SentencePieceModel& model) : model_(model) {
  std::vector<std::pair<std::string_view, uint32_t>> matching, user_defined;
  float smallest = FLT_MAX;
  largest_score_ =
      FLT_MIN;  // not -FLT_MAX: so does SentencePiece, and it shows in user-defined scores
  for (uint32_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[id];
    if (piece.kind == PieceKind::kNormal) {
      smallest = std::min(smallest, piece.score);
      largest_score_ = std::max(largest_score_, piece.score);
    } else if (piece.kind == PieceKind::kUserDefined) {
      user_defined.emplace_back(piece.text, id);
    } else {
      continue;
    }
    matching.emplace_back(piece.text, id);
  }
  unknown_score_ = smallest - kUnknownPenalty;
  user_defined_ = PieceTrie(std::move(user_defined));
  if (model.kind == SentencePieceModel::Kind::kBpe) {
    ids_.insert(matching.begin(), matching.end());
  } else {
    pieces_ = PieceTrie(std::move(matching));
  }
}

std::vector<Match> SentencePieceEncoder::segment(std::string_view normalized) const {
  if (normalized.empty()) return {};
  return model_.kind == SentencePieceModel::Kind::kBpe ? segment_bpe(normalized)
                                                       : segment_unigram(normalized);
}

// The most probable segmentation (Kudo 2018) by dynamic programming over the byte positions. Scores
// are added in the types and order that SentencePiece uses, so that ties and roundings fall the
// same way.
std::vector<Match> SentencePieceEncoder::segment_unigram(std::string_view text) const {
  struct Best {
    float score = 0;
    uint32_t id = 0;
    int64_t begin = -1;  // of the last piece of the best path that ends here; -1: no path yet
  };
  std::vector<Best> best(text.size() + 1);
  const auto offer = [&best](size_t begin, size_t end, uint32_t id, double score) {
    const double total = score + best[begin].score;
    Best& target = best[end];
    if (target.begin == -1 || total > target.score) {
      target = {static_cast<float>(total), id, static_cast<int64_t>(begin)};
    }
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t character = announced_bytes(text.substr(begin));
    bool character_matches = false;
    PieceTrie::Node node = PieceTrie::kRoot;
    for (size_t end = begin; end < text.size() && pieces_.step(text[end], &node);) {
      ++end;
      const std::optional<uint32_t> id = pieces_.value(node);
      if (!id) continue;
      const SentencePieceModel::Piece& piece = model_.pieces[*id];
      const size_t bytes = end - begin;
      offer(begin, end, *id,
            piece.kind == PieceKind::kUserDefined
                ? static_cast<double>(static_cast<float>(bytes) * largest_score_) - 0.1
                : piece.score);
      if (bytes == character) character_matches = true;
    }
    if (!character_matches) {
      offer(begin, begin + character, model_.unknown_id, unknown_score_);
    }
    begin += character;
  }
  std::vector<Match> matches;
  for (size_t end = text.size(); end > 0;) {
    TESSERA_CHECK(best[end].begin >= 0);
    const auto begin = static_cast<size_t>(best[end].begin);
    matches.push_back({text.substr(begin, end - begin), best[end].id});
    end = begin;
  }
  std::reverse(matches.begin(), matches.end());
  return matches;
}

// Byte pair encoding (Sennrich 2016): merges neighbours, the best scoring result first, as long as
// the result is a piece.
std::vector<Match> SentencePieceEncoder::segment_bpe(std::string_view text) const {
  std::vector<Symbol> symbols;
  for (size_t begin = 0; begin < text.size();) {
    const std::string_view rest = text.substr(begin);
    const size_t fixed = user_defined_.longest_prefix(rest);
    const size_t bytes = fixed > 0 ? fixed : announced_bytes(rest);
    const auto index = static_cast<int64_t>(symbols.size());
    begin += bytes;
    symbols.push_back(
        {rest.substr(0, bytes), index - 1, begin < text.size() ? index + 1 : -1, fixed > 0});
  }
  std::priority_queue<Merge> merges;
  const auto propose = [&](int64_t left, int64_t right) {
    if (left < 0 || right < 0 || symbols[left].fixed || symbols[right].fixed) return;
    const size_t bytes = symbols[left].text.size() + symbols[right].text.size();
    const auto id = ids_.find(std::string_view(symbols[left].text.data(), bytes));
    if (id == ids_.end()) return;
    merges.push({model_.pieces[id->second].score, left, right, bytes});
  };
  for (size_t right = 1; right < symbols.size(); ++right) {
    propose(static_cast<int64_t>(right) - 1, static_cast<int64_t>(right));
  }
  while (!merges.empty()) {
    const Merge merge = merges.top();
    merges.pop();
    Symbol& left = symbols[merge.left];
    Symbol& right = symbols[merge.right];
    if (left.text.empty() || right.text.empty() ||
        left.text.size() + right.text.size() != merge.bytes) {
      continue;
    }
    left.text = std::string_view(left.text.data(), merge.bytes);
    right.text = {};
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = merge.left;
    propose(left.previous, merge.left);
    propose(merge.left, left.next);
  }
  std::vector<Match> matches;
  for (int64_t index = 0; index != -1; index = symbols[index].next) {
    const auto id = ids_.find(symbols[index].text);
    matches.push_back({symbols[index].text, id == ids_.end() ? model_.unknown_id : id->second});
  }
  return matches;
}

}  // namespace tessera::data
